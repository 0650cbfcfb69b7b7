"""The paper: tensors in, tensors out. Only what builds from a configuration is here or called `from_config`."""

from collections.abc import Callable

from ml_collections import ConfigDict
from torch.nn import Module

from model_code.blur import DCTBlur, blur_schedule
from model_code.blurring_diffusion import BlurringDiffusion, VelocityBlurringDiffusion
from model_code.process import HeatDissipation, Process
from model_code.unet import UNet

PROCESSES: dict[str, Callable[[ConfigDict], Process]] = {
    "heat": HeatDissipation.from_config,
    "blurring_diffusion": BlurringDiffusion.from_config,
    "velocity_blurring_diffusion": VelocityBlurringDiffusion.from_config,
}
"""config.model.process: what images are destroyed by."""


def build_process(config: ConfigDict) -> Process:
    """The process that config.model.process names. Raises ValueError for a name or settings that cannot be."""
    name = config.model.process
    if name not in PROCESSES:
        raise ValueError(f"config.model.process = {name!r}: must be one of {', '.join(PROCESSES)}")
    return PROCESSES[name](config)


def build_model(config: ConfigDict) -> Module:
    """The network that config.model.network names, freshly initialised: f(u, k)."""
    name = config.model.network
    if name not in NETWORKS:
        raise ValueError(f"config.model.network = {name!r}: must be one of {', '.join(NETWORKS)}")
    return NETWORKS[name](config)


def build_unet(config: ConfigDict) -> UNet:
    """The U-Net that config.model and config.data describe."""
    model = config.model
    return UNet(
        image_size=config.data.image_size,
        num_channels=config.data.num_channels,
        model_channels=model.model_channels,
        channel_mult=tuple(model.channel_mult),
        num_res_blocks=model.num_res_blocks,
        attention_levels=tuple(model.attention_levels),
        patch_size=model.patch_size,
        dropout=model.dropout,
        num_heads=model.num_heads,
        num_head_channels=model.num_head_channels,
        conv_resample=model.conv_resample,
        use_new_attention_order=model.use_new_attention_order,
        use_scale_shift_norm=model.use_scale_shift_norm,
        resblock_updown=model.resblock_updown,
        recompute=config.training.recompute,
    )


def build_blur(config: ConfigDict) -> DCTBlur:
    """The blur A_k, with the schedule derived from K, blur_sigma_min and blur_sigma_max as they now stand."""
    schedule = blur_schedule(config.model.K, config.model.blur_sigma_min, config.model.blur_sigma_max)
    return DCTBlur(schedule, config.data.image_size, config.data.image_size)


NETWORKS: dict[str, Callable[[ConfigDict], Module]] = {"unet": build_unet}
"""config.model.network: what undoes it."""
