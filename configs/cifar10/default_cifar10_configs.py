"""CIFAR-10 at 32x32, the paper's settings: 61.1M parameters, K = 200.

python train.py --config configs/cifar10/default_cifar10_configs.py --workdir runs/cifar10/default
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """Colour images, four levels, mixed precision."""
    config = default.get_config()
    config.data.dataset = "cifar10"
    config.data.image_size = 32
    config.data.num_channels = 3
    config.model.K = 200
    config.model.blur_sigma_max = 24.0
    config.model.channel_mult = (1, 2, 2, 2)
    config.model.attention_levels = (2, 3)
    config.optim.automatic_mp = True
    return config


get_default_configs = get_config  # the original release's name for it
