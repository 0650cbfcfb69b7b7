"""Layers of the U-Net: names and shapes are those of improved-diffusion, so that the release's weights fit."""

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)

MAX_EXPLICIT_PIXELS = 256
"""Up to here all pairs of pixels are few, and products and softmax one by one beat the fused kernel's slow backward on CPUs."""


def level_embedding(k: torch.Tensor, dim: int) -> torch.Tensor:
    """Sinusoidal embedding of the levels k (B,): float32 (B, dim), cosines first; `dim` even.

    Frequencies fall geometrically from 1 towards 1/10000 (Vaswani et al., 2017).
    """
    half = dim // 2
    frequencies = torch.exp(-math.log(10000) / half * torch.arange(half, dtype=torch.float32, device=k.device))
    angles = k.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class GroupNorm32(nn.GroupNorm):
    """GroupNorm with 32 groups, computed in float32 whatever the input's precision."""

    def __init__(self, channels: int) -> None:
        super().__init__(32, channels, eps=1e-5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type == "cpu":
            return super().forward(x)  # its kernel takes 16-bit inputs and computes in float32, at half a step's cost
        return super().forward(x.float()).to(x.dtype)


class SiLU(nn.SiLU):
    """x sigmoid(x), written over its input where no gradient needs that: only for an input that nobody else reads."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.silu(x, inplace=not torch.is_grad_enabled())


class Dropout(nn.Dropout):
    """Dropout, on CPUs with masks from 16 random bits a value.

    PyTorch's own draws serially in float64 there, and was a tenth of a training step on one core, more on several. The
    probability is rounded to a multiple of 2^-16, and the scale is that of the rounded one.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "cpu" or not self.training or self.p == 0:
            return super().forward(x)
        dropped = round(self.p * 2**16)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        mask = (words.view(torch.int16)[: x.numel()] >= dropped - 2**15).to(x.dtype)
        return x * mask.mul_(2**16 / max(1, 2**16 - dropped)).view_as(x)


class InputConv(nn.Conv2d):
    """A 3x3 convolution of the images themselves, in float32 also under autocast; what comes of it is in autocast's type.

    Rounding an image to bfloat16 is noise of up to 0.002, and what is to be seen in a blurred one is fainter than its own
    noise of 0.01: with it, a network of 1.1M parameters on digits had a sixth more error at the last of 100 levels.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kind = x.device.type
        if kind == "meta" or not torch.is_autocast_enabled(kind):
            return super().forward(x)
        with torch.autocast(kind, enabled=False):
            return super().forward(x.float()).to(torch.get_autocast_dtype(kind))


class PointwiseConv(nn.Conv2d):
    """A 1x1 convolution, on CPUs as one matrix product per image, in a third of the time that a convolution takes."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        return _per_pixel(self, x.flatten(2)).view(len(x), -1, *x.shape[2:])


def _per_pixel(layer: nn.Conv1d | nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """A convolution with kernel size 1 as a matrix product: x (B, C, T) to (B, C', T)."""
    assert layer.bias is not None
    return torch.baddbmm(layer.bias[:, None], layer.weight.flatten(1).expand(len(x), -1, -1), x)


def zero_init(module: ModuleT) -> ModuleT:
    """Set all parameters to zero: a residual branch that starts as nothing, an output that starts at 0."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class Upsample(nn.Module):
    """Nearest-neighbour x2, then (with `use_conv`) a 3x3 convolution."""

    def __init__(self, channels: int, use_conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if use_conv else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Downsample(nn.Module):
    """Half the resolution by a stride-2 3x3 convolution, or (without `use_conv`) by averaging 2x2 pixels."""

    def __init__(self, channels: int, use_conv: bool) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if use_conv else nn.AvgPool2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.op(x)


class ResBlock(nn.Module):
    """Two convolutions with the level embedding in between, added to a skip connection.

    `resample` changes the resolution on both branches: an `Upsample` or `Downsample` without parameters, or nothing.
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
        self.in_layers = nn.Sequential(GroupNorm32(channels), SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1))
        self.resample = resample if resample is not None else nn.Identity()
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(emb_channels, 2 * out_channels if use_scale_shift_norm else out_channels)
        )
        self.out_layers = nn.Sequential(
            GroupNorm32(out_channels),
            SiLU(),
            Dropout(dropout),
            zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = nn.Identity() if channels == out_channels else PointwiseConv(channels, out_channels)

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
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

    With `new_order` the channels of `qkv` are split into q, k, v first and then into heads; without, heads come first.
    The two differ for more than one head, and a checkpoint means one of them.
    """

    def __init__(self, channels: int, *, num_heads: int, new_order: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.new_order = new_order
        self.norm = GroupNorm32(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero_init(nn.Conv1d(channels, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, C, H, W): (B, C, H, W)."""
        B, C, H, W = x.shape
        qkv = _per_pixel(self.qkv, self.norm(x.reshape(B, C, H * W)))
        head_dim = C // self.num_heads
        if self.new_order:
            q, k, v = qkv.view(B, 3, self.num_heads, head_dim, H * W).unbind(1)
        else:
            q, k, v = qkv.view(B, self.num_heads, 3, head_dim, H * W).unbind(2)
        # As (B, heads, pixels, channels), and contiguous: the fused kernels, which never hold all pairs of pixels, ask for it.
        q, k, v = (part.mT.contiguous() for part in (q, k, v))
        h = _attend(q, k, v).mT.reshape(B, C, H * W)
        return x + _per_pixel(self.proj_out, h).view(B, C, H, W)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T / sqrt(channels)) v, each (B, heads, pixels, channels)."""
    if q.device.type == "cpu" and q.requires_grad and q.shape[2] <= MAX_EXPLICIT_PIXELS:
        weights = torch.softmax(q @ k.mT * q.shape[3] ** -0.5, dim=-1)
        return weights.to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v)
