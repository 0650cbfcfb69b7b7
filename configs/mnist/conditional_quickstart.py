"""The quickstart's network, told the classes of digits: minutes on a laptop's processor.

python train.py --config configs/mnist/conditional_quickstart.py --workdir runs/mnist/classes
python sample.py --workdir runs/mnist/classes --class=all
"""

from ml_collections import ConfigDict

from configs.mnist import quickstart


def get_config() -> ConfigDict:
    """As the quickstart, with an embedding of ten classes."""
    config = quickstart.get_config()
    config.model.class_conditional = True
    config.data.num_classes = 10
    config.model.use_scale_shift_norm = True  # GroupNorm of 32 channels removes what is added
    return config
