"""MNIST at 28x28, the paper's settings: 42.1M parameters, K = 100.

python train.py --config configs/mnist/default_mnist_configs.py --workdir runs/mnist/default
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """The base configuration is this experiment; only the pictures come more often."""
    config = default.get_config()
    config.training.sampling_freq = 1000
    return config


get_default_configs = get_config  # the original release's name for it
