"""The 5,000 embedded MNIST digits by blurring diffusion (Hoogeboom and Salimans, 2023), trained as
quickstart.py.

python train.py --config configs/mnist/blurring_diffusion_quickstart.py \\
    --workdir runs/mnist/blurring_diffusion_quickstart
"""

from ml_collections import ConfigDict

from configs.mnist import quickstart


def get_config() -> ConfigDict:
    """Quickstart's network and training, K = 100."""
    config = quickstart.get_config()
    config.data.uniform_dequantization = False  # the bound is one on 8-bit images
    # minutes are too short to predict eps well enough
    config.model.process = "velocity_blurring_diffusion"
    config.model.K = 100
    config.model.sigma = 0.01  # the default: noise has a schedule of its own
    return config
