"""Samples made from pictures agree with what is known of them, and beat interpolation."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d

from scripts.config.paths import ROOT
from scripts.data.datasets import load_images
from scripts.sampling import editing
from scripts.sampling.choice import Choice
from scripts.sampling.editing import bicubic, length_scales
from scripts.sampling.sampler import Sampler, load_sampler
from scripts.storage.checkpoint import saved_config
from tests.conftest import bad_input
from tests.model_code.test_gaussian import make

EMOJI = ROOT / "runs/emoji/pretrained"
HALF = torch.zeros(32, 32, dtype=torch.bool)
HALF[:, 16:] = True


@cache
def sampler(**choice: object) -> Sampler:
    """Of the included emoji weights."""
    return load_sampler(EMOJI, choice=Choice(**choice))[0]  # type: ignore[arg-type]


@cache
def pictures() -> torch.Tensor:
    """Six held-out emoji, (6, 3, 32, 32) in [0, 1]."""
    source = load_images(saved_config(EMOJI, 0).data, "held_out")
    pixels = np.stack([source[i] for i in range(0, 162, 27)])
    return torch.from_numpy(pixels).float() / 255


def eight_bit(images: torch.Tensor) -> torch.Tensor:
    return (images * 255).round() / 255


def psnr(images: torch.Tensor) -> torch.Tensor:
    return -10 * (images - pictures()).square().mean((1, 2, 3)).log10()


@pytest.mark.parametrize(("factor", "calls"), [(2, 7), (4, 12)])
def test_super_resolution(factor: int, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In few calls, nearer to the original than interpolation; made small again it is the small
    picture within 2 of 255 grey levels; samples do not depend on the batch.
    """
    small = eight_bit(avg_pool2d(pictures(), factor))
    steps = 0

    def counted(*args: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += 1
        return model(*args)

    model = sampler().model
    samples = replace(sampler(), model=counted).super_resolve(small, 2)
    assert steps == calls
    assert samples.shape == (6, 2, 3, 32, 32)
    again = avg_pool2d(eight_bit(samples).flatten(0, 1), factor).unflatten(0, (6, 2))
    assert (again - small[:, None]).abs().max() <= 2 / 255
    gain = psnr(samples[:, 0]) - psnr(bicubic(small, factor))
    assert gain.mean() > 2
    assert (samples[:, 0] - samples[:, 1]).abs().amax((1, 2, 3)).min() > 0.02
    monkeypatch.setattr(editing, "BATCH_SIZE", 5)
    torch.testing.assert_close(sampler().super_resolve(small, 2), samples, atol=2e-3, rtol=0)


def test_inpainting() -> None:
    """Known pixels stay as they are; what is made differs, and is nearer to the original than the
    mean of what is known.
    """
    samples = sampler().inpaint(pictures(), HALF, 2)
    known = (~HALF).expand(6, 2, 3, 32, 32)
    expected = pictures()[:, None].expand_as(samples)
    torch.testing.assert_close(samples[known], expected[known], atol=1e-6, rtol=0)
    assert (samples[:, 0] - samples[:, 1]).abs().amax((1, 2, 3)).min() > 0.05
    mean = pictures()[..., ~HALF].mean(-1)[..., None, None]
    filled = torch.where(HALF, mean, pictures())
    assert (psnr(samples[:, 0]) - psnr(filled)).mean() > 0.5


def test_editing() -> None:
    """From little blur the picture comes back nearly; from much another one."""
    near, far = (sampler().edit(pictures(), blur)[:, 0] for blur in (0.6, 12))
    assert (psnr(near) - psnr(far)).min() > 3
    level = 20
    blur = length_scales(sampler().process)[level].item()  # type: ignore[arg-type]
    assert torch.equal(
        sampler().edit(pictures()[:1], blur), sampler().from_images(pictures()[:1], level=level)
    )
    few = sampler(steps="10")
    level, visited = editing.level_of_blur(few, 20.0)
    assert level in few.kernel.chain
    assert visited == length_scales(few.process)[level].item()  # type: ignore[arg-type]


def test_length_scales_are_those_of_the_schedule() -> None:
    schedule = sampler().process.blur.schedule  # type: ignore[attr-defined]
    torch.testing.assert_close(length_scales(sampler().process), schedule)  # type: ignore[arg-type]
    flow = length_scales(make("flow"))
    torch.testing.assert_close(flow[:-1], 4 * torch.arange(40).double() / 40)


SMALL = torch.zeros(1, 3, 8, 8)
UNKNOWN = torch.ones(32, 32, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sampler().super_resolve(SMALL[..., :7]), "7 x 8 pixels.*32 x 32.*whole number"),
        (lambda: sampler().super_resolve(torch.zeros(1, 3, 32, 32)), "whole number of times"),
        (lambda: sampler().super_resolve(torch.zeros(1, 3, 64, 64)), "64 x 64 pixels"),
        (lambda: sampler(delta=0.1).super_resolve(SMALL), "needs the calibrated kernel"),
        (lambda: sampler().inpaint(pictures(), UNKNOWN), "all pixels are unknown"),
        (lambda: sampler().inpaint(pictures(), ~UNKNOWN), "all pixels are known"),
        (lambda: sampler().inpaint(pictures(), UNKNOWN[:9]), "--mask: has 32 x 9 pixels"),
        (lambda: sampler().edit(pictures(), 100.0), "--blur=100: must be from 0.5 to 24"),
        (lambda: sampler().edit(pictures(), 0.01), "--blur=0.01: must be from"),
    ],
)
def test_bad_input(call: Callable[[], torch.Tensor], message: str) -> None:
    with bad_input(message):
        call()
