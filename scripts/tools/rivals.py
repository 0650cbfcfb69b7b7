"""Other implementations of the same network, to compare speed with."""

from typing import Any

import torch
import torch.nn.functional as F
from ml_collections import ConfigDict
from torch import nn

from scripts.device import Precision, place
from scripts.errors import UserError


class Diffusers:
    """diffusers' `UNet2DModel` in the size of a configuration's network, with a plain training step."""

    def __init__(self, config: ConfigDict, device: torch.device) -> None:
        """Raises UserError if the package is not installed, or has no such network."""
        self.model = place(diffusers_unet(config), device, config.compile)
        self.precision = Precision.of(config, device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.optim.lr, fused=True)
        self.scaler = self.precision.grad_scaler()

    def train_step(self, u: torch.Tensor, k: torch.Tensor, target: torch.Tensor) -> None:
        """Forward, backward, Adam, for images u, levels k and targets that are there already: no average, no clipping."""
        self.model.train()
        with self.precision.autocast():
            loss = F.mse_loss(self.model(u, k).sample.float(), target)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def forward(self, u: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """The network's output for images u and levels k, nothing kept for gradients."""
        self.model.eval()
        with self.precision.autocast():
            return self.model(u, k).sample


def diffusers_unet(config: ConfigDict) -> nn.Module:
    """The network that `config` describes, of diffusers' parts. Its middle and up-sampling blocks differ in details.

    Raises UserError if the package is not installed, or has no such network.
    """
    data, model = config.data, config.model
    channels = [model.model_channels * mult for mult in model.channel_mult]
    attended = {channels[level] for level in model.attention_levels} | {channels[-1]}  # the middle block attends, too
    if len(attended) > 1:
        raise UserError(
            f"--against=diffusers: config.model.attention_levels = {tuple(model.attention_levels)} asks for attention over "
            f"{sorted(attended)} channels, and diffusers has one size of heads for all"
        )
    kinds = ["Attn" if level in model.attention_levels else "" for level in range(len(channels))]
    resampling = "resnet" if model.resblock_updown else "conv"
    options: dict[str, Any] = {
        "sample_size": data.image_size,
        "in_channels": data.num_channels,
        "out_channels": data.num_channels,
        "layers_per_block": model.num_res_blocks,
        "block_out_channels": channels,
        "down_block_types": [f"{kind}DownBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(kinds)],
        "attention_head_dim": attended.pop() // model.num_heads,
        "dropout": model.dropout,
        "downsample_type": resampling,
        "upsample_type": resampling,
        "resnet_time_scale_shift": "scale_shift" if model.use_scale_shift_norm else "default",
    }
    try:
        from diffusers import UNet2DModel
    except ImportError as error:
        raise UserError(f"--against=diffusers: the package cannot be imported ({error}); pip install diffusers") from None
    return UNet2DModel(**options)
