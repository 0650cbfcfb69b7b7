"""FFHQ at 128x128, blurred as far as the 256x256 images are: 160.0M parameters, K = 200.

python train.py --config configs/ffhq/img_size_128_maxblur128.py --workdir runs/ffhq/img_size_128
"""

from ml_collections import ConfigDict

from configs.ffhq import default_ffhq_configs


def get_config() -> ConfigDict:
    """`default_ffhq_configs` at half the size with a shallower network; sigma_B still reaches 128
    pixels.
    """
    config = default_ffhq_configs.get_config()
    config.eval.batch_size = 9
    config.data.image_size = 128
    config.model.num_res_blocks = 2
    config.model.dropout = 0.1
    config.optim.lr = 2e-4
    return config
