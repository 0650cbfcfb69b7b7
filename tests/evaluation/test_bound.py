"""The bound on the likelihood: its terms, a case whose answer is known, and the levels that
estimates of it look at.
"""

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model_code.blur import DCTBlur, blur_schedule
from model_code.elbo import bits_per_dim
from model_code.gaussian import GaussianProcess
from model_code.kernels import GaussianKernel, isotropic
from model_code.presets import heat_dissipation
from model_code.prior import PriorBank
from model_code.process import Denoiser
from scripts.data.datasets import load_images
from scripts.data.loader import Batch, ReadingFailed
from scripts.estimate import Estimate
from scripts.evaluation.bound import level_table
from scripts.evaluation.results import Point
from scripts.runtime.device import Precision
from scripts.sampling.bound import Measurement, draw_strata, measure
from scripts.sampling.choice import Choice
from scripts.sampling.sampler import Sampler, load_sampler
from tests.conftest import bad_input
from tests.evaluation.evaluations import of_bound
from tests.evaluation.made_run import make_run
from tests.gaussian import (
    MEAN,
    SIGMA,
    SIZE,
    VARIANCES,
    gaussian_images,
    posterior_mean,
    posterior_variance,
)
from tests.tiny import tiny_config

DELTA, K = 0.0125, 12
BLUR = DCTBlur(blur_schedule(K, 0.5, 5.0), SIZE, SIZE)
PAPER, RELEASED = (
    heat_dissipation(BLUR, SIGMA, num_channels=1, protocol=protocol)
    for protocol in ("paper", "released")
)
KERNEL = isotropic(PAPER, DELTA)


def best_denoiser(u: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """f(u_k, k) with the posterior mean of A_{k-1} u_0."""
    return posterior_mean(BLUR, u, k, k - 1) - u


def expected_squared_error(k: int) -> float:
    """E ||A_{k-1} u_0 - E[A_{k-1} u_0 | u_k]||^2."""
    return float(posterior_variance(BLUR, k, k - 1).sum())


def batches(u: torch.Tensor, size: int = 64) -> Iterator[Batch]:
    for images, indices in zip(u.split(size), torch.arange(len(u)).split(size), strict=True):
        yield Batch(images, indices, (), np.zeros(len(images), np.uint32))


def sampler(
    seed: int,
    process: GaussianProcess = PAPER,
    model: Denoiser = best_denoiser,
    kernel: GaussianKernel | None = None,
) -> Sampler:
    precision = Precision.named(torch.device("cpu"), "float32")
    return Sampler(
        model, process, BANK, kernel or KERNEL, "", DELTA, seed, precision, (1, SIZE, SIZE)
    )


def measured(
    images: torch.Tensor, seed: int = 3, num_levels: int = K, batch_size: int = 256, **options: Any
) -> Measurement:
    return measure(
        sampler(seed, **options), batches(images, max(1, batch_size // 4)), batch_size, num_levels
    )


IMAGES = gaussian_images(500)
BANK = PriorBank.from_images(MEAN, BLUR)


@functools.cache  # not while tests are collected, by every process
def exact() -> Measurement:
    return measured(IMAGES)


def exact_bound() -> dict[str, torch.Tensor]:
    return exact().bound(PAPER, BANK, KERNEL)


def closed_form(protocol: str) -> dict[str, float]:
    """Expectations of the bound's parts over such images, for a prior of one component at their
    mean.
    """
    N = SIZE**2
    constant = 0.5 * (SIGMA**2 / DELTA**2 * N - N + 2 * N * math.log(DELTA / SIGMA))
    kept = BLUR.alpha(torch.tensor([K]))[0, 0]
    prior = constant + 0.5 * float((kept**2 * VARIANCES).sum()) / DELTA**2
    levels = range(2, K + 1) if protocol == "paper" else range(1, K)
    intermediate = sum(constant + 0.5 * expected_squared_error(k) / DELTA**2 for k in levels)
    reconstruction = 0.5 * expected_squared_error(1) / DELTA**2 + N * math.log(
        DELTA * math.sqrt(2 * math.pi)
    )
    return {
        "prior": prior,
        "intermediate": intermediate,
        "reconstruction": reconstruction,
        "total": prior + intermediate + reconstruction,
    }


@pytest.mark.parametrize("num_levels", [K, 4])
@pytest.mark.parametrize("protocol", ["paper", "released"])
def test_known_answer(protocol: str, num_levels: int) -> None:
    """Every part of the bound of the best model on Gaussian data is its expectation, within the
    standard error.
    """
    process = PAPER if protocol == "paper" else RELEASED
    bound = measured(IMAGES, 0, num_levels, process=process).bound(process, BANK, KERNEL)
    for name, expected in closed_form(protocol).items():
        found = Estimate.of(bound[name])
        assert abs(found.value - expected) < 3 * found.standard_error, name
        assert found.standard_error < 0.1 * abs(expected)


def test_squared_errors_by_level() -> None:
    rows = level_table(exact(), PAPER, KERNEL)
    assert [row.k for row in rows] == list(range(1, K + 1))
    for row in rows:
        assert row.num_images == len(IMAGES)
        assert abs(row.squared_error - expected_squared_error(row.k)) < 4 * row.squared_error_se
        of_errors = row.squared_error / (2 * DELTA**2)
        assert row.term_nats - row.term_without_errors == pytest.approx(of_errors, rel=1e-4)
    bound = exact_bound()
    assert sum(row.term_nats for row in rows[1:]) == pytest.approx(
        bound["intermediate"].mean().item()
    )
    assert rows[0].term_nats == pytest.approx(bound["reconstruction"].mean().item())


def test_bits_per_dim() -> None:
    """A model that spreads its mass evenly over [0, 1]^N has a density of 1 and needs 8 bits for
    each of 256 values.
    """
    nats = torch.tensor([0.0, -10 * math.log(2)])
    assert bits_per_dim(nats, 10, discrete=False).tolist() == pytest.approx([8.0, 7.0])
    assert bits_per_dim(-nats, 10, discrete=True).tolist() == pytest.approx([0.0, 1.0])


def test_sums_of_both_protocols() -> None:
    """The release has level 1 in place of level K."""
    assert list(PAPER.bound_levels(KERNEL)) == list(range(2, K + 1))
    assert list(RELEASED.bound_levels(KERNEL)) == list(range(1, K))
    part = isotropic(RELEASED, DELTA, (5, 3, 2, 0))
    assert list(RELEASED.bound_levels(part)) == [3, 5]
    last = PAPER.terms(exact().errors[:, -1], exact().levels[:, -1], KERNEL)
    released = measured(IMAGES, process=RELEASED)
    torch.testing.assert_close(released.errors[:, 1:], exact().errors[:, :-1])
    assert released.levels[0].tolist() == list(range(1, K))
    at_1 = RELEASED.terms(released.errors[:, 0], released.levels[:, 0], KERNEL)
    difference = released.bound(RELEASED, BANK, KERNEL)["total"] - exact_bound()["total"]
    torch.testing.assert_close(difference, at_1 - last)


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 1000))
def test_one_level_from_each_stratum(num_levels: int, num_draws: int, seed: int) -> None:
    levels = range(2, num_levels + 2)
    drawn = draw_strata(seed, 5, levels, num_draws)
    assert drawn == sorted(drawn) == draw_strata(seed, 5, levels, num_draws)
    if num_draws >= num_levels:
        assert drawn == list(levels)
        return
    width = num_levels / num_draws
    for stratum, level in enumerate(drawn):
        assert stratum * width - 1 < level - 2 < (stratum + 1) * width


def test_levels_are_equally_likely() -> None:
    """7 levels in 3 strata: strata that end within a level share it fairly."""
    counts = np.bincount([k for i in range(7000) for k in draw_strata(1, i, range(2, 9), 3)])
    np.testing.assert_allclose(counts[2:], 3000, atol=5 * math.sqrt(3000))


def test_batch_size_does_not_matter() -> None:
    one, other = (measured(IMAGES[:20], 7, 4, batch_size) for batch_size in (256, 3))
    assert torch.equal(one.levels, other.levels)
    torch.testing.assert_close(one.errors, other.errors, rtol=1e-3, atol=1e-8)
    assert not torch.equal(one.levels, measured(IMAGES[:20], 8, 4).levels)


def test_batches_without_a_readable_image() -> None:
    """They are left out; an error if there are no others."""
    nothing = Batch(IMAGES[:0], torch.empty(0, dtype=torch.int64), ("a.png",))
    assert len(measure(sampler(0), [nothing, *batches(IMAGES[:3])], 256, 2).levels) == 3
    with pytest.raises(ReadingFailed, match=r"none of the 1 images can be read, such as a\.png"):
        measure(sampler(0), [nothing], 256, 2)


@pytest.mark.parametrize("process", ["heat", "flow_matching"])
def test_the_bound_of_images_is_that_of_the_command(process: str, tmp_path: Path) -> None:
    """By image; its parts sum up to it; other types, sizes and processes are refused."""
    config = tiny_config(model__process=process, model__K=4)
    make_run(config, tmp_path)
    ancestral = Choice(eta=None if process == "heat" else 1.0)
    sampler, _ = load_sampler(tmp_path, config=config, choice=ancestral, seed=3, scoring=True)
    source = load_images(config.data, "held_out")
    pixels = torch.stack([torch.from_numpy(np.array(source[i])) for i in range(len(source))])
    bound = sampler.bound(pixels, levels=2)
    point = Point(seed=3, eta=ancestral.eta)
    nats, bits = of_bound(tmp_path, config, num_images=0, dequantize=True)(point)
    assert nats.per_image is not None
    assert bits.per_image is not None
    np.testing.assert_allclose(bound.total, nats.per_image, rtol=1e-6)
    np.testing.assert_allclose(bound.bits_per_dim, bits.per_image, rtol=1e-6)
    parts = bound.prior + bound.intermediate + bound.reconstruction
    torch.testing.assert_close(parts, bound.total)
    for wrong in (pixels.float(), pixels[..., :7]):
        with bad_input(r"must be a tensor uint8 \(B, 1, 8, 8\)"):
            sampler.bound(wrong)
    for options, message in (
        ({"levels": 0}, "levels = 0: must be at least 1"),
        ({"labels": torch.zeros(len(pixels))}, "this network needs no labels"),
    ):
        with bad_input(message):
            sampler.bound(pixels, **options)
