"""LSUN churches at 128x128, the paper's settings: K = 400.

python train.py --config configs/lsun_church/default_lsun_configs.py \\
    --workdir runs/lsun_church/default
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """Five levels down to 8x8, a low learning rate, mixed precision."""
    config = default.get_config()
    config.training.batch_size = 32
    config.eval.batch_size = 9
    config.eval.num_images = 192  # 2% of the time, see configs/default.py
    config.data.dataset = "lsun_church"
    config.data.image_size = 128
    config.data.num_channels = 3
    config.model.K = 400
    config.model.blur_sigma_max = 64.0
    config.model.channel_mult = (1, 2, 3, 4, 5)
    config.model.attention_levels = (2, 3, 4)
    config.optim.lr = 2e-5
    config.optim.automatic_mp = True
    return config


get_default_configs = get_config  # the original release's name for it
