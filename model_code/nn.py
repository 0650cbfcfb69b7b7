"""Layers of the U-Net: names and shapes are those of improved-diffusion, so that the release's
weights fit.
"""

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def level_embedding(k: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of the levels k (B,): float32 (B, dim), cosines first; `dim` even.

    Frequencies fall geometrically from 1 towards 1/10000 (Vaswani et al., 2017).
    """
    half = dim // 2
    places = torch.arange(half, dtype=torch.float32, device=k.device)
    frequencies = torch.exp(-math.log(10000) / half * places)
    angles = k.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class GroupNorm32(nn.GroupNorm):
    """PyTorch computes GroupNorm in float32 whatever the input's type; the result has the input's
    type.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(x.dtype)


class InputConv(nn.Conv2d):
    """A convolution of the images themselves, in float32 also under autocast; its result has
    autocast's type.

    Rounding an image to bfloat16 adds an error of up to 0.002, too much beside the training noise
    of 0.01 and the faint details of a blurred image: a network of 1.1M parameters on digits had a
    sixth more error at the last of 100 levels.
    """

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        if x.is_meta or not torch.is_autocast_enabled(kind):
            return super().forward(x)
        with torch.autocast(kind, enabled=False):
            return super().forward(x.float()).to(torch.get_autocast_dtype(kind))


ModuleT = TypeVar("ModuleT", bound=nn.Module)


def zero_init(module: ModuleT) -> ModuleT:
    """Set all parameters to zero, so that a residual branch starts as the identity and the
    network's output at 0.
    """
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class Upsample(nn.Module):
    """Nearest-neighbour x2, then (with `use_conv`) a 3x3 convolution."""

    def __init__(self, channels: int, use_conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if use_conv else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Downsample(nn.Module):
    """Half the resolution by a stride-2 3x3 convolution, or (without `use_conv`) by averaging 2x2
    pixels.
    """

    def __init__(self, channels: int, use_conv: bool) -> None:
        super().__init__()
        self.op = (
            nn.Conv2d(channels, channels, 3, stride=2, padding=1) if use_conv else nn.AvgPool2d(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class ResBlock(nn.Module):
    """Two convolutions with the level embedding in between, added to a skip connection.

    `resample` changes the resolution on both branches: an `Upsample` or `Downsample` without
    parameters, or nothing.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        emb_channels: int,
        *,
        dropout: float,
        use_scale_shift_norm: bool,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.use_scale_shift_norm = use_scale_shift_norm
        self.in_layers = nn.Sequential(
            GroupNorm32(32, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.resample = resample or nn.Identity()
        self.emb_layers = nn.Sequential(
            nn.SiLU(),
            nn.Linear(emb_channels, 2 * out_channels if use_scale_shift_norm else out_channels),
        )
        self.out_layers = nn.Sequential(
            GroupNorm32(32, out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = (
            nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)
        )

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (B, C, H, W), emb (B, emb_channels): (B, out_channels, H', W')."""
        norm, activation, conv = self.in_layers
        h = conv(self.resample(activation(norm(x))))
        emb_out = self.emb_layers(emb)[:, :, None, None].to(h.dtype)
        if self.use_scale_shift_norm:
            scale, shift = emb_out.chunk(2, dim=1)
            norm, activation, dropout, conv = self.out_layers
            h = conv(dropout(activation(norm(h) * (1 + scale) + shift)))
        else:
            h = self.out_layers(h + emb_out)
        return self.skip_connection(self.resample(x)) + h


class AttentionBlock(nn.Module):
    """Self-attention over all pixels of one resolution, added to its input.

    It has `num_heads` heads or, unless that is -1, as many as have `num_head_channels` channels
    each. With `new_order` the channels of `qkv` are split into q, k, v first and then into heads;
    without, heads come first. The two differ for more than one head: weights trained with one order
    do not work with the other.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 1,
        num_head_channels: int = -1,
        new_order: bool = True,
    ) -> None:
        super().__init__()
        head_channels = channels // num_heads if num_head_channels == -1 else num_head_channels
        assert channels % head_channels == 0
        self.num_heads = channels // head_channels
        self.new_order = new_order
        self.norm = GroupNorm32(32, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero_init(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W): (B, C, H, W)."""
        B, C, H, W = x.shape
        qkv = self.qkv(self.norm(x.reshape(B, C, H * W)))
        head_dim = C // self.num_heads
        if self.new_order:
            q, k, v = qkv.view(B, 3, self.num_heads, head_dim, H * W).unbind(1)
        else:
            q, k, v = qkv.view(B, self.num_heads, 3, head_dim, H * W).unbind(2)
        # (B, heads, pixels, channels), contiguous as the fused kernels want it.
        q, k, v = (part.mT.contiguous() for part in (q, k, v))
        h = F.scaled_dot_product_attention(q, k, v).mT.reshape(B, C, H * W)
        return x + self.proj_out(h).view(B, C, H, W)
