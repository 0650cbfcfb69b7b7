"""FFHQ at 256x256, the paper's settings: 210.9M parameters, K = 200.

python train.py --config configs/ffhq/default_ffhq_configs.py --workdir runs/ffhq/default
"""

from ml_collections import ConfigDict

from configs.afhq import default_afhq_configs


def get_config() -> ConfigDict:
    """The network of `default_afhq_configs` on faces: a lower learning rate, mixed precision."""
    config = default_afhq_configs.get_config()
    config.data.dataset = "ffhq"
    config.optim.lr = 2e-5
    config.optim.automatic_mp = True
    return config


get_default_configs = get_config  # the original release's name for it
