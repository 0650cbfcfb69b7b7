"""The 5,000 embedded MNIST digits by Gaussian diffusion (DDPM with a cosine schedule): blurring
diffusion without blur.

python train.py --config configs/mnist/diffusion_quickstart.py \\
    --workdir runs/mnist/diffusion_quickstart
"""

from ml_collections import ConfigDict

from configs.mnist import blurring_diffusion_quickstart


def get_config() -> ConfigDict:
    """As the other, without blur."""
    config = blurring_diffusion_quickstart.get_config()
    config.model.process = "gaussian_diffusion"
    return config
