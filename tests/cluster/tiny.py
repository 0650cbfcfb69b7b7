"""A training of seconds, whose steps are logged one by one, so that a fault can be made between two of them."""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """Sixty steps with dropout and flips, saved every ten."""
    config = default.get_config()
    config.device = "cpu"
    config.training.batch_size = 12
    config.training.n_iters = 60
    config.training.log_freq = 1
    config.training.eval_freq = 1000
    config.training.sampling_freq = 1000
    config.training.num_samples = 1
    config.training.noise_images = 2
    config.training.snapshot_freq = 1000
    config.training.snapshot_freq_for_preemption = 10
    config.eval.batch_size = 100
    config.eval.num_images = 12
    config.data.dataset = "mnist5k"
    config.data.image_size = 28
    config.data.random_flip = True
    config.model.K = 2
    config.model.blur_sigma_max = 4.0
    config.model.patch_size = 4
    config.model.model_channels = 32
    config.model.channel_mult = (1,)
    config.model.num_res_blocks = 1
    config.model.attention_levels = ()
    config.optim.warmup = 2
    return config
