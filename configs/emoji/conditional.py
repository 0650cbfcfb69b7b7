"""What the weights in runs/emoji/conditional were trained with: emoji of two vendors, by category.

python train.py --config configs/emoji/conditional.py --workdir runs/emoji/mine
python sample.py --workdir runs/emoji/mine --class=all --guidance=1.5
"""

from ml_collections import ConfigDict

from configs.emoji import pretrained


def get_config() -> ConfigDict:
    """2.2M parameters on patches of 2x2 pixels, K = 25, 17,000 steps of 32 images."""
    config = pretrained.get_config()
    config.training.n_iters = 17000
    config.data.num_classes = 8
    config.model.K = 25  # all are visited: 25 of 30 levels make worse samples
    config.model.class_conditional = True
    config.model.use_scale_shift_norm = True
    config.model.channel_mult = (2, 2, 3)
    config.model.attention_levels = (1,)
    config.optim.lr = 1e-3
    return config
