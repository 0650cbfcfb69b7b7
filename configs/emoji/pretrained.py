"""What the weights in runs/emoji/pretrained were trained with: an hour and a half on one core with
AVX2, in float32, when data/emoji32.npz held Noto's pictures alone: the same command now makes
others.

The weights' card has the scores.
"""

from ml_collections import ConfigDict

from configs.emoji import quickstart


def get_config() -> ConfigDict:
    """1.2M parameters on patches of 2x2 pixels, K = 30, 15,000 steps of 32 images."""
    config = quickstart.get_config()
    config.training.n_iters = 15000
    config.training.log_freq = 50
    config.training.eval_freq = 500
    config.training.sampling_freq = 2000
    config.training.snapshot_freq = 2000
    config.training.snapshot_freq_for_preemption = 250
    config.model.ema_rate = 0.999
    config.model.channel_mult = (1, 2, 2)
    config.model.attention_levels = (1, 2)
    config.optim.lr = 1.5e-3
    config.optim.beta2 = 0.999
    config.optim.warmup = 200
    return config
