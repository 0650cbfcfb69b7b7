"""The 5,000 embedded MNIST digits with a very small network: minutes on a laptop's processor.

make quickstart
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """0.7M parameters on patches of 2x2 pixels, K = 30, much noise, a high learning rate that
    decays to zero.
    """
    config = default.get_config()
    config.training.batch_size = 32
    config.training.n_iters = 1600
    config.training.log_freq = 20
    config.training.eval_freq = 400
    config.training.sampling_freq = 400
    config.training.snapshot_freq = 800
    config.training.snapshot_freq_for_preemption = 100
    config.data.dataset = "mnist5k"
    config.data.uniform_dequantization = True
    config.model.K = 30
    config.model.sigma = 0.1  # the paper's is 0.01; docs/calibration.md says why
    config.model.ema_rate = 0.99
    config.model.patch_size = 2  # a 28x28 level would take three quarters of the time
    config.model.model_channels = 32
    config.model.channel_mult = (1, 2)
    config.model.attention_levels = (1,)
    config.model.num_res_blocks = 1
    config.model.dropout = 0.0
    config.optim.lr = 2e-3
    config.optim.beta2 = 0.99
    config.optim.warmup = 50
    config.optim.schedule = "cosine"
    config.optim.automatic_mp = True
    return config
