"""The U-Net f(u_k, k): topology, parameter names and order of improved-diffusion (Nichol and
Dhariwal, 2021).
"""

from collections.abc import Iterator
from functools import partial
from inspect import signature

import torch
import torch.nn.functional as F
from ml_collections import ConfigDict
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model_code.nn import (
    AttentionBlock,
    Downsample,
    GroupNorm32,
    InputConv,
    ResBlock,
    Upsample,
    level_embedding,
    zero_init,
)


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
