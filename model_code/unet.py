"""The U-Net f(u_k, k): topology, parameter names and order of improved-diffusion (Nichol and Dhariwal, 2021)."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from model_code.nn import (
    AttentionBlock,
    Downsample,
    GroupNorm32,
    InputConv,
    ResBlock,
    SiLU,
    Upsample,
    level_embedding,
    zero_init,
)


class Stage(nn.Sequential):
    """Modules in a row; those that depend on the blur level are given its embedding as well."""

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        for module in self:
            x = module(x, emb) if isinstance(module, ResBlock) else module(x)
        return x


class UNet(nn.Module):
    """Predicts the change of an image over one reverse step, at the image's own resolution."""

    def __init__(
        self,
        *,
        image_size: int,
        num_channels: int,
        model_channels: int,
        channel_mult: tuple[int, ...],
        num_res_blocks: int,
        attention_levels: tuple[int, ...],
        dropout: float = 0.0,
        num_heads: int = 1,
        use_new_attention_order: bool = True,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        recompute: bool = False,
    ) -> None:
        """image_size in pixels, divisible by 2^(len(channel_mult) - 1); model_channels a multiple of 32.

        Level i works with model_channels * channel_mult[i] channels at image_size / 2^i pixels; `attention_levels` are
        such i. With `recompute` the backward pass computes anew what is inside each stage: the same numbers, for far less
        memory and a third more time. Raises ValueError for an image size that cannot be halved that often.
        """
        super().__init__()
        last_level = len(channel_mult) - 1
        if image_size % 2**last_level:
            raise ValueError(f"image_size {image_size} must be divisible by {2**last_level} for {last_level + 1} levels")
        self.model_channels = model_channels
        self.recompute = recompute
        emb_channels = 4 * model_channels

        res_block = partial(ResBlock, emb_channels=emb_channels, dropout=dropout, use_scale_shift_norm=use_scale_shift_norm)
        attention = partial(AttentionBlock, num_heads=num_heads, new_order=use_new_attention_order)

        # Modules register their parameters in the order of these statements; the release's EMA weights are a list in it.
        self.time_embed = nn.Sequential(nn.Linear(model_channels, emb_channels), SiLU(), nn.Linear(emb_channels, emb_channels))

        channels = model_channels * channel_mult[0]
        self.input_blocks = nn.ModuleList([Stage(InputConv(num_channels, channels))])
        skip_channels = [channels]
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                stage: list[nn.Module] = [res_block(channels, model_channels * mult)]
                channels = model_channels * mult
                if level in attention_levels:
                    stage.append(attention(channels))
                self.input_blocks.append(Stage(*stage))
                skip_channels.append(channels)
            if level < last_level:
                down = Downsample(channels, use_conv=not resblock_updown)
                self.input_blocks.append(Stage(res_block(channels, channels, resample=down) if resblock_updown else down))
                skip_channels.append(channels)

        self.middle_block = Stage(res_block(channels, channels), attention(channels), res_block(channels, channels))

        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(num_res_blocks + 1):
                stage = [res_block(channels + skip_channels.pop(), model_channels * mult)]
                channels = model_channels * mult
                if level in attention_levels:
                    stage.append(attention(channels))
                if level > 0 and i == num_res_blocks:
                    up = Upsample(channels, use_conv=not resblock_updown)
                    stage.append(res_block(channels, channels, resample=up) if resblock_updown else up)
                self.output_blocks.append(Stage(*stage))

        self.out = nn.Sequential(GroupNorm32(channels), SiLU(), zero_init(nn.Conv2d(channels, num_channels, 3, padding=1)))

    def forward(self, u: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """f(u, k): images u (B, C, H, W) at int64 blur levels k (B,), to (B, C, H, W)."""
        emb = self.time_embed(level_embedding(k, self.model_channels))
        h, skips = u, []
        for stage in self.input_blocks:
            h = self._through(stage, h, emb)
            skips.append(h)
        h = self._through(self.middle_block, h, emb)
        for stage in self.output_blocks:
            h = self._through(stage, torch.cat([h, skips.pop()], dim=1), emb)
        return self.out(h)

    def stages(self) -> Iterator[nn.Module]:
        """What `recompute` computes again one by one, in the order of the forward pass."""
        yield from self.input_blocks
        yield self.middle_block
        yield from self.output_blocks

    def _through(self, stage: nn.Module, h: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(stage, h, emb, use_reentrant=False)  # which draws dropout's masks again as they were
        return stage(h, emb)
