"""What the weights in runs/mnist/pretrained were trained with: a network like the quickstart's, at
full resolution, for hours.

About three hours on processors with AMX, in bfloat16; the weights' card has the stages and the
scores.
"""

from ml_collections import ConfigDict

from configs.mnist import quickstart


def get_config() -> ConfigDict:
    """1.1M parameters, K = 100 as in the paper, 43,000 steps."""
    config = quickstart.get_config()
    config.training.batch_size = 64
    config.training.n_iters = 43000
    config.training.log_freq = 50
    # samples fail at the last levels, whose losses are the smallest
    config.training.level_weighting = 1.0
    config.training.eval_freq = 500
    config.training.sampling_freq = 4000
    config.training.snapshot_freq = 2000
    config.training.snapshot_freq_for_preemption = 250
    config.eval.num_images = 0
    config.model.K = 100
    config.model.sigma = 0.01
    config.model.ema_rate = 0.999
    config.model.patch_size = 1
    config.model.channel_mult = (1, 2, 2)
    config.model.attention_levels = (2,)
    config.optim.lr = 1.2e-3
    config.optim.beta2 = 0.999
    config.optim.warmup = 200
    return config
