"""A configuration whose steps take milliseconds, also as a file for --config."""

from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from configs import default

TINY = Path(__file__)


def tiny_config(**overrides: object) -> ConfigDict:
    """`overrides` are like model__K=3 for config.model.K."""
    config = default.get_config()
    config.device = "cpu"
    config.training.batch_size = 4
    config.training.n_iters = 6
    config.training.log_freq = 2
    config.training.eval_freq = 100
    config.training.sampling_freq = 100
    config.training.num_samples = 2
    config.training.snapshot_freq = 100
    config.training.snapshot_freq_for_preemption = 100
    config.eval.batch_size = 4
    config.eval.num_images = 6
    config.data.dataset = "mnist5k"
    config.data.image_size = 8
    config.data.random_flip = True
    config.model.K = 3
    config.model.blur_sigma_max = 4.0
    config.model.model_channels = 32
    config.model.channel_mult = (1,)
    config.model.num_res_blocks = 1
    config.model.attention_levels = (0,)
    config.optim.warmup = 2
    return overridden(config, overrides)


def overridden(config: ConfigDict, overrides: Mapping[str, object]) -> ConfigDict:
    """The same configuration, with other values of some keys."""
    for key, value in overrides.items():
        *sections, name = key.split("__")
        place = config
        for section in sections:
            place = place[section]
        place[name] = value
    return config


get_config = tiny_config
