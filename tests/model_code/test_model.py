"""The U-Net's parts against independent computations, and its options."""

import contextlib
import copy
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model_code import build_model
from model_code.ema import EMA
from model_code.unet import AttentionBlock, GroupNorm32, ResBlock, UNet, level_embedding
from tests.golden import fill_golden
from tests.tiny import tiny_config

SMALL: dict[str, Any] = {
    "num_channels": 3,
    "model_channels": 32,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "attention_levels": (1,),
}


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Of the parameters, in their order."""
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}


def test_level_embedding() -> None:
    """Cosines first, then sines, frequencies exp(-ln(10000) i / half)."""
    angles = 7 * np.exp(-math.log(10000) * np.arange(3) / 3)
    expected = [[1, 1, 1, 0, 0, 0], [*np.cos(angles), *np.sin(angles)]]
    embedding = level_embedding(torch.tensor([0, 7]), 6)
    np.testing.assert_allclose(embedding, expected, atol=1e-6)


@pytest.mark.parametrize("new_order", [True, False])
def test_attention_against_plain_softmax(new_order: bool) -> None:
    """Two heads: where q, k and v of each head lie among the channels of `qkv` is what the two
    orders differ in.
    """
    heads, dim, pixels = 2, 16, 9
    channels = heads * dim
    block = AttentionBlock(channels, num_heads=heads, new_order=new_order)
    fill_golden(block)
    x = torch.randn(2, channels, 3, 3, generator=torch.Generator().manual_seed(0))
    flat = x.reshape(2, channels, pixels)
    parts = block.qkv(block.norm(flat)).split(dim, dim=1)
    results = []
    for head in range(heads):
        q, k, v = parts[head::heads] if new_order else parts[3 * head : 3 * head + 3]
        attention = torch.softmax(torch.einsum("bct,bcs->bts", q, k) / math.sqrt(dim), dim=-1)
        results.append(torch.einsum("bts,bcs->bct", attention, v))
    expected = flat + block.proj_out(torch.cat(results, dim=1))
    torch.testing.assert_close(block(x), expected.reshape(x.shape), atol=1e-5, rtol=1e-5)


def test_a_fresh_model_predicts_no_change() -> None:
    """The last convolution starts at zero, so that mu(u, k) = u before training."""
    model = UNet(**SMALL)
    assert torch.equal(model(torch.rand(2, 3, 8, 8), torch.tensor([1, 5])), torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize(
    "option", [{"use_scale_shift_norm": True}, {"resblock_updown": True}, {"conv_resample": False}]
)
def test_options_change_the_network_and_train(option: dict[str, bool]) -> None:
    plain, other = UNet(**SMALL), UNet(**{**SMALL, **option})
    assert shapes(plain) != shapes(other)
    fill_golden(other)
    u = torch.rand(2, 3, 8, 8)
    output = other(u, torch.tensor([1, 5]))
    assert output.shape == u.shape
    for gradient in torch.autograd.grad(output.sum(), list(other.parameters())):
        assert gradient.isfinite().all()
        assert gradient.any()


def test_names_with_resblock_updown() -> None:
    """guided-diffusion's names: a residual block in the place of the convolution, no parameters for
    the resampling.
    """
    names = shapes(UNet(**SMALL, resblock_updown=True))
    assert "input_blocks.2.0.in_layers.2.weight" in names
    assert "output_blocks.1.2.out_layers.3.weight" in names
    assert not any("resample" in name or ".op." in name for name in names)


def test_resampling_without_convolutions() -> None:
    """The release's conv_resample=False: averages of 2x2 pixels on the way down, repeated pixels on
    the way up.
    """
    model = UNet(**SMALL, conv_resample=False)
    assert not any(".op." in name or name.endswith("conv.weight") for name in shapes(model))
    x = torch.arange(16.0).view(1, 1, 4, 4)
    down, up = model.get_submodule("input_blocks.2.0"), model.get_submodule("output_blocks.1.2")
    assert torch.equal(down(x), torch.tensor([[[[2.5, 4.5], [10.5, 12.5]]]]))
    assert torch.equal(up(x), x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


def test_heads_by_their_channels() -> None:
    """The release's num_head_channels: as many heads as fit, at each level; num_heads then has no
    say.
    """
    model = UNet(**{**SMALL, "attention_levels": (0, 1)}, num_heads=5, num_head_channels=16)
    blocks = [module for module in model.modules() if isinstance(module, AttentionBlock)]
    assert {block.norm.num_channels: block.num_heads for block in blocks} == {32: 2, 64: 4}


def test_scale_shift_norm_by_hand() -> None:
    """h = norm(h) (1 + scale) + shift, the embedding's first half being the scale."""
    block = ResBlock(32, 32, 128, dropout=0.0, use_scale_shift_norm=True)
    fill_golden(block)
    block.eval()
    x, emb = torch.rand(2, 32, 8, 8), torch.rand(2, 128)
    h = block.in_layers(x)
    scale, shift = block.emb_layers(emb)[:, :, None, None].chunk(2, dim=1)
    h = block.out_layers[3](F.silu(block.out_layers[0](h) * (1 + scale) + shift))
    torch.testing.assert_close(block(x, emb), x + h)


@pytest.mark.parametrize(
    ("size", "named"),
    [(6, ""), ((8, 6), ", as its width 6 is not"), ((6, 8), ", as its height 6 is not")],
)
def test_image_size_that_cannot_be_halved(size: object, named: str) -> None:
    must = "must be divisible by 4, for 3 levels in model.channel_mult"
    message = re.escape(f"config.data.image_size = {size}: {must}{named}")
    with pytest.raises(ValueError, match=f"^{message}$"):
        build_model(tiny_config(data__image_size=size, model__channel_mult=(1, 1, 1)))


def test_group_norm_is_float32_inside() -> None:
    """A mean of 300 with a spread of 1 drowns in bfloat16 sums, but not in float32 ones."""
    norm = GroupNorm32(32, 32)
    x = (300 + 4 * torch.rand(1, 32, 16, 16)).bfloat16()
    result = norm(x)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), F.group_norm(x.float(), 32), atol=0.02, rtol=0.02)


def test_dropout_only_in_training() -> None:
    model = build_model(tiny_config(model__dropout=0.5))
    fill_golden(model)
    u, k = torch.rand(2, 1, 8, 8), torch.tensor([1, 2])
    model.eval()
    assert torch.equal(model(u, k), model(u, k))
    model.train()
    assert not torch.equal(model(u, k), model(u, k))


def test_ema_by_hand() -> None:
    """Decay of the n-th update: min(rate, (1 + n) / (10 + n))."""
    model, rate = torch.nn.Linear(1, 1, bias=False), 0.3
    torch.nn.init.constant_(model.weight, 1.0)
    ema = EMA(model, rate)
    expected = 1.0
    for n, weight in enumerate([2.0, -1.0, 4.0, 0.5], start=1):
        torch.nn.init.constant_(model.weight, weight)
        ema.update(model)
        decay = min(rate, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weight
        assert ema.shadow["weight"].item() == pytest.approx(expected, rel=1e-6)
    assert (1 + 4) / (10 + 4) > rate > (1 + 1) / (10 + 1), "the sequence should reach both branches"


def test_ema_swaps_in_and_back_also_after_an_error() -> None:
    model = torch.nn.Linear(2, 2)
    ema = EMA(model, 0.9)
    average = copy.deepcopy(ema.shadow)
    own = torch.nn.init.normal_(model.weight).clone()
    with contextlib.suppress(RuntimeError), ema.swapped_in(model):
        assert torch.equal(model.weight, average["weight"])
        raise RuntimeError
    assert torch.equal(model.weight, own)
    assert torch.equal(ema.shadow["weight"], average["weight"])


def test_ema_of_another_architecture_is_refused() -> None:
    state = EMA(torch.nn.Linear(2, 3), 0.9).state_dict()
    with pytest.raises(ValueError, match="another architecture"):
        EMA(torch.nn.Linear(3, 2), 0.9).load_state_dict(state)


def test_patches() -> None:
    """The pixels of a patch are channels inside: names stay, shapes differ at both ends only."""
    plain, patched = shapes(UNet(**SMALL)), UNet(**SMALL, patch_size=2)
    ends = {"out.2.weight": (12, 32, 3, 3), "out.2.bias": (12,)}
    assert shapes(patched) == plain | ends | {"input_blocks.0.0.weight": (32, 12, 3, 3)}
    assert list(shapes(patched)) == list(plain)
    sizes: list[int] = []
    patched.input_blocks[0].register_forward_hook(lambda *args: sizes.append(args[2].shape[-1]))
    u = torch.rand(2, 3, 8, 8)
    output = patched(u, torch.tensor([1, 5]))
    assert (output.shape, sizes) == (u.shape, [4])
