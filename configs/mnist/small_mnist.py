"""MNIST at 28x28 with a small network: 3.7M parameters, K = 50. A GPU trains it in well under an
hour.

python train.py --config configs/mnist/small_mnist.py --workdir runs/mnist/small
"""

from ml_collections import ConfigDict

from configs.mnist import default_mnist_configs


def get_config() -> ConfigDict:
    """`default_mnist_configs` with 64 channels at every level, half the blur levels and frequent
    checkpoints.
    """
    config = default_mnist_configs.get_config()
    config.training.snapshot_freq_for_preemption = 100
    config.model.K = 50
    config.model.model_channels = 64
    config.model.channel_mult = (1, 1, 1)
    return config
