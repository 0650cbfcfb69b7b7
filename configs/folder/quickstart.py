"""A folder of your own pictures at 32x32 in colour, with the quickstart's network: minutes on a
laptop's processor.

python train.py --config configs/folder/quickstart.py \\
    --workdir runs/mine/first --config.data.path=~/pictures
"""

from ml_collections import ConfigDict

from configs.emoji import quickstart


def get_config() -> ConfigDict:
    """The emoji's settings: 0.7M parameters on patches of 2x2 pixels, K = 30, much noise."""
    config = quickstart.get_config()
    config.training.n_iters = 1200
    config.eval.num_images = 256
    config.data.dataset = "folder"
    config.data.uniform_dequantization = False  # which is for images of 8 bits
    return config
