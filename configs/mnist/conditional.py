"""Teach the included weights of runs/mnist/pretrained the classes of digits."""

from ml_collections import ConfigDict

from configs.mnist import pretrained


def get_config() -> ConfigDict:
    """The same network with an embedding of ten classes."""
    config = pretrained.get_config()
    config.model.class_conditional = True
    config.data.num_classes = 10
    config.training.init_from = "runs/mnist/pretrained"
    config.training.n_iters = 2500
    config.training.batch_size = 32
    config.training.sampling_freq = 1250
    config.training.snapshot_freq = 2500
    config.training.snapshot_freq_for_preemption = 100
    config.training.eval_freq = 500
    config.eval.num_images = 100
    config.optim.lr = 6e-4
    config.optim.warmup = 100
    return config
