"""The U-Net f(u_k, k): topology, parameter names and order of improved-diffusion (Nichol and
Dhariwal, 2021), so that the release's weights fit.
"""

import math
from collections.abc import Iterator
from functools import partial
from inspect import signature
from typing import TypeVar

import torch
import torch.nn.functional as F
from ml_collections import ConfigDict
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# --- layers ---


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


# --- the network ---


class Stage(nn.Sequential):
    """Modules in a row; those that depend on the blur level are given its embedding as well."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        for module in self:
            x = module(x, emb) if isinstance(module, ResBlock) else module(x)
        return x


class UNet(nn.Module):
    """Predicts the change of an image over one reverse step, at the image's own resolution.

    The pixels of a square of patch_size^2 become channels before the first convolution, and pixels
    again after the last. Level i works with model_channels * channel_mult[i] channels at each
    side of the image / patch_size / 2^i points; `attention_levels` are such i. Channels must be
    multiples of 32, and all of these sizes integers. Attention has `num_heads` heads or, unless
    num_head_channels is -1, heads of `num_head_channels` channels. Resolution changes in residual
    blocks (`resblock_updown`), by a convolution (`conv_resample`), or by averaging 2x2 pixels and
    repeating them. With `recompute` the backward pass recomputes activations: the same numbers,
    less memory, a third more time. With `num_classes` there is an embedding of classes, at first
    zero, that joins that of the level.
    """

    def __init__(
        self,
        *,
        num_channels: int,
        model_channels: int,
        channel_mult: tuple[int, ...],
        num_res_blocks: int,
        attention_levels: tuple[int, ...],
        patch_size: int = 1,
        dropout: float = 0.0,
        num_heads: int = 1,
        num_head_channels: int = -1,
        use_new_attention_order: bool = True,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        conv_resample: bool = True,
        recompute: bool = False,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        self.model_channels, self.patch_size = model_channels, patch_size
        self.recompute, self.num_classes = recompute, num_classes
        patch_channels, emb_size = num_channels * patch_size**2, 4 * model_channels
        widths = [model_channels * mult for mult in channel_mult]
        res_block = partial(
            ResBlock,
            emb_channels=emb_size,
            dropout=dropout,
            use_scale_shift_norm=use_scale_shift_norm,
        )
        attention = partial(
            AttentionBlock,
            num_heads=num_heads,
            num_head_channels=num_head_channels,
            new_order=use_new_attention_order,
        )

        def blocks(channels: int, level: int) -> list[nn.Module]:
            block = res_block(channels, widths[level])
            return [block, attention(widths[level])] if level in attention_levels else [block]

        def resample(kind: type[Downsample] | type[Upsample], channels: int) -> nn.Module:
            if resblock_updown:
                return res_block(channels, channels, resample=kind(channels, use_conv=False))
            return kind(channels, use_conv=conv_resample)

        # Modules register their parameters in the order of these statements; the release's EMA
        # weights are a list in it.
        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, emb_size), nn.SiLU(), nn.Linear(emb_size, emb_size)
        )
        if num_classes:
            self.label_emb = zero_init(nn.Embedding(num_classes, emb_size))
        self.input_blocks = nn.ModuleList(
            [Stage(InputConv(patch_channels, widths[0], 3, padding=1))]
        )
        channels, skips = widths[0], [widths[0]]
        for level, width in enumerate(widths):
            stages = [blocks(c, level) for c in (channels, *[width] * (num_res_blocks - 1))]
            if level < len(widths) - 1:
                stages.append([resample(Downsample, width)])
            self.input_blocks.extend(Stage(*stage) for stage in stages)
            channels, skips = width, skips + [width] * len(stages)
        self.middle_block = Stage(
            res_block(channels, channels), attention(channels), res_block(channels, channels)
        )
        self.output_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            stages = [blocks(c + skips.pop(), level) for c in (channels, *[width] * num_res_blocks)]
            if level > 0:
                stages[-1].append(resample(Upsample, width))
            self.output_blocks.extend(Stage(*stage) for stage in stages)
            channels = width
        output_conv = zero_init(nn.Conv2d(channels, patch_channels, 3, padding=1))
        self.out = nn.Sequential(GroupNorm32(32, channels), nn.SiLU(), output_conv)

    @classmethod
    def from_config(cls, config: ConfigDict) -> "UNet":
        """As config.model and config.data say. Raises ValueError for settings that cannot be."""
        model = config.model
        for key, right, holds in _checks(config):
            if not holds:
                section, name = key.split(".")
                raise ValueError(f"config.{key} = {config[section][name]!r}: must be {right}")
        return cls(
            num_channels=config.data.num_channels,
            recompute=config.training.recompute,
            num_classes=config.data.num_classes if model.class_conditional else 0,
            **{name: model[name] for name in MODEL_KEYS},
        )

    def forward(self, u: Tensor, k: Tensor, y: Tensor | None = None) -> Tensor:
        """f(u, k, y): images u (B, C, H, W) at int64 blur levels k (B,), to (B, C, H, W).

        y: of class-conditional networks, int64 classes (B,), -1 for none, or what each class counts
        for, float (B, num_classes); None is none for all.
        """
        emb = self.time_embed(level_embedding(k, self.model_channels))
        if y is not None:
            if not y.is_floating_point():
                y = F.one_hot(y + 1, self.num_classes + 1)[:, 1:].float()
            # Times the root of its size (Vaswani et al., 2017): steps of Adam's size change a table
            # far less than they change what `time_embed` computes.
            emb = emb + emb.shape[1] ** 0.5 * F.linear(y, self.label_emb.weight.T)
        h, skips = F.pixel_unshuffle(u, self.patch_size), []
        for stage in self.input_blocks:
            h = self._through(stage, h, emb)
            skips.append(h)
        h = self._through(self.middle_block, h, emb)
        for stage in self.output_blocks:
            h = self._through(stage, torch.cat([h, skips.pop()], dim=1), emb)
        return F.pixel_shuffle(self.out(h), self.patch_size)

    def _through(self, stage: nn.Module, h: Tensor, emb: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(stage, h, emb, use_reentrant=False)  # repeats dropout's masks
        return stage(h, emb)


MODEL_KEYS = signature(UNet).parameters.keys() - {"num_channels", "recompute", "num_classes"}
"""Keys of config.model that are arguments of `UNet`."""


def image_shape(data: ConfigDict) -> tuple[int, int, int]:
    """(C, H, W) of the images that `config.data` describes."""
    size = data.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return data.num_channels, height, width


def _checks(config: ConfigDict) -> Iterator[tuple[str, str, bool]]:
    """(key, what is expected, whether it holds) for the network's settings; later ones rely on
    earlier ones.
    """
    model = config.model
    for name in ("model_channels", "num_res_blocks", "num_heads", "patch_size"):
        yield f"model.{name}", "at least 1", model[name] >= 1
    channels, mult, patch_size = model.model_channels, model.channel_mult, model.patch_size
    levels, whole = len(mult), all(isinstance(m, int) and m > 0 for m in mult)
    right = "a positive integer per level, such as (1, 2, 2)"
    yield "model.channel_mult", right, levels > 0 and whole
    right = "a multiple of 32, the number of groups in GroupNorm"
    yield "model.model_channels", right, channels % 32 == 0
    factor = patch_size * 2 ** (levels - 1)
    patches = f" and model.patch_size = {patch_size}" if patch_size > 1 else ""
    right = f"divisible by {factor}, for {levels} levels in model.channel_mult{patches}"
    _, height, width = image_shape(config.data)
    if height != width:
        side = f"height {height}" if height % factor else f"width {width}"
        right += f", as its {side} is not"
    yield "data.image_size", right, height % factor == width % factor == 0
    right = f"levels from 0 to {levels - 1}, as model.channel_mult has {levels}"
    in_range = all(level in range(levels) for level in model.attention_levels)
    yield "model.attention_levels", right, in_range
    right = "the number of classes, as model.class_conditional is True; training fills it in"
    yield "data.num_classes", right, config.data.num_classes > 0 or not model.class_conditional
    size = model.num_head_channels
    yield "model.num_head_channels", "-1 or greater than 0", size == -1 or size > 0
    name, divisor = ("num_heads", model.num_heads) if size == -1 else ("num_head_channels", size)
    attended = [channels * mult[level] for level in (*model.attention_levels, levels - 1)]
    right = "a divisor of the channels at every level with attention"
    yield f"model.{name}", right, all(c % divisor == 0 for c in attended)
