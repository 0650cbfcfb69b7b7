"""CIFAR-10 by blurring diffusion (Hoogeboom and Salimans, 2023), with this program's network for
CIFAR-10: 61.1M parameters.

The paper reports an FID of 3.17 for its own network. This configuration has not been trained here.

python train.py --config configs/cifar10/blurring_diffusion.py \\
    --workdir runs/cifar10/blurring_diffusion
"""

from ml_collections import ConfigDict

from configs.cifar10 import default_cifar10_configs


def get_config() -> ConfigDict:
    """K = 1000, largest blur 20 pixels."""
    config = default_cifar10_configs.get_config()
    config.model.process = "blurring_diffusion"
    config.model.K = 1000
    config.model.blur_sigma_max = 20.0
    return config
