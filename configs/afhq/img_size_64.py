"""AFHQ at 64x64: 88.2M parameters, K = 200.

python train.py --config configs/afhq/img_size_64.py --workdir runs/afhq/img_size_64
"""

from ml_collections import ConfigDict

from configs.afhq import default_afhq_configs


def get_config() -> ConfigDict:
    """`default_afhq_configs` at a quarter of the size, with four levels and larger batches."""
    config = default_afhq_configs.get_config()
    config.training.batch_size = 128
    config.training.sampling_freq = 25000
    config.eval.batch_size = 9
    config.eval.num_images = 768
    config.data.image_size = 64
    config.model.blur_sigma_max = 32.0
    config.model.ema_rate = 0.999
    config.model.channel_mult = (1, 2, 3, 4)
    config.model.num_res_blocks = 2
    config.model.attention_levels = (2, 3)
    config.model.dropout = 0.1
    return config
