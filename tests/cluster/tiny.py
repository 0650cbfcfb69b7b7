"""A training of seconds, whose steps are logged one by one, so that a fault can be made between two
of them.
"""

from ml_collections import ConfigDict

from tests.tiny import tiny_config


def get_config() -> ConfigDict:
    """Sixty steps with dropout and flips, saved every ten."""
    steps = {
        "training__n_iters": 60,
        "training__log_freq": 1,
        "training__snapshot_freq_for_preemption": 10,
    }
    never = {f"training__{name}": 1000 for name in ("eval_freq", "sampling_freq", "snapshot_freq")}
    images = {
        "training__batch_size": 12,
        "training__num_samples": 1,
        "training__noise_images": 2,
        "data__image_size": 28,
    }
    network = {"model__K": 2, "model__patch_size": 4, "model__attention_levels": ()}
    return tiny_config(
        **steps, **never, **images, **network, eval__batch_size=100, eval__num_images=12
    )
