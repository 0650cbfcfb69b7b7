"""The embedded emoji, 32x32 pixels in colour, with the quickstart's network: minutes on a laptop's
processor.

python train.py --config configs/emoji/quickstart.py --workdir runs/emoji/quickstart
"""

from ml_collections import ConfigDict

from configs.mnist import quickstart


def get_config() -> ConfigDict:
    """The digits' settings; mirrored pictures double a small data set."""
    config = quickstart.get_config()
    config.eval.num_images = 326  # all that are held out
    config.data.dataset = "emoji32"
    config.data.image_size = 32
    config.data.num_channels = 3
    config.data.random_flip = True
    config.model.blur_sigma_max = 24.0
    return config
