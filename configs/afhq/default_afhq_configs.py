"""AFHQ at 256x256, the paper's settings: 210.9M parameters, K = 200.

python train.py --config configs/afhq/default_afhq_configs.py --workdir runs/afhq/default
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """Five levels down to 16x16, more dropout against overfitting, a slower average of weights."""
    config = default.get_config()
    config.training.batch_size = 32
    config.eval.batch_size = 4
    config.eval.num_images = 192  # 2% of the time, see configs/default.py
    config.data.dataset = "afhq"
    config.data.image_size = 256
    config.data.num_channels = 3
    config.model.K = 200
    config.model.blur_sigma_max = 128.0
    config.model.ema_rate = 0.9999
    config.model.channel_mult = (1, 2, 3, 4, 5)
    config.model.num_res_blocks = 3
    config.model.attention_levels = (2, 3, 4)
    config.model.dropout = 0.3
    config.optim.lr = 1e-4
    return config


get_default_configs = get_config  # the original release's name for it
