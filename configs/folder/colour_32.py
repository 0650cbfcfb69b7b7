"""A folder of your own colour images at 32x32, with a small network: minutes to an hour on a
laptop's processor.

python train.py --config configs/folder/colour_32.py \\
    --workdir runs/mine/first --config.data.path=~/pictures
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """1.1M parameters, K = 100, largest blur 24 pixels, bfloat16 where supported, a learning rate
    that decays to zero.
    """
    config = default.get_config()
    config.training.batch_size = 64
    config.training.n_iters = 3000
    config.training.log_freq = 20
    config.training.eval_freq = 500
    config.training.sampling_freq = 1000
    config.training.snapshot_freq = 1000
    config.training.snapshot_freq_for_preemption = 100
    config.data.dataset = "folder"
    config.data.image_size = 32
    config.data.num_channels = 3
    config.data.random_flip = True
    config.model.blur_sigma_max = 24.0
    config.model.ema_rate = 0.995
    config.model.model_channels = 32
    config.model.num_res_blocks = 1
    config.model.dropout = 0.05
    config.optim.lr = 1e-3
    config.optim.warmup = 100
    config.optim.schedule = "cosine"
    config.optim.automatic_mp = True
    return config
