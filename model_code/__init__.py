"""The paper: tensors in, tensors out. `build_model` and `build_blur` are the only places that unpack a config."""

from ml_collections import ConfigDict

from model_code.blur import DCTBlur, blur_schedule
from model_code.unet import UNet


def build_model(config: ConfigDict) -> UNet:
    """The U-Net that `config.model` and `config.data` describe, freshly initialised: f(u, k)."""
    model = config.model
    return UNet(
        image_size=config.data.image_size,
        num_channels=config.data.num_channels,
        model_channels=model.model_channels,
        channel_mult=tuple(model.channel_mult),
        num_res_blocks=model.num_res_blocks,
        attention_levels=tuple(model.attention_levels),
        dropout=model.dropout,
        num_heads=model.num_heads,
        use_new_attention_order=model.use_new_attention_order,
        use_scale_shift_norm=model.use_scale_shift_norm,
        resblock_updown=model.resblock_updown,
        recompute=config.training.recompute,
    )


def build_blur(config: ConfigDict) -> DCTBlur:
    """The blur A_k, with the schedule derived from K, blur_sigma_min and blur_sigma_max as they now stand."""
    schedule = blur_schedule(config.model.K, config.model.blur_sigma_min, config.model.blur_sigma_max)
    return DCTBlur(schedule, config.data.image_size, config.data.image_size)
