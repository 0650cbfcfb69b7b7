"""The bound on the likelihood: its terms, a case whose answer is known, and the levels that estimates of it look at."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model_code.blur import DCTBlur, blur_schedule
from model_code.dct import dct2, idct2
from model_code.elbo import Bound, Estimate, intermediate_levels, intermediate_term, prior_kl_bound, reconstruction_term
from model_code.prior import PriorBank
from scripts.data.loader import Batch
from scripts.device import Precision
from scripts.evaluation.likelihood import BoundEstimator, Measurement, draw_strata, drawing_errors, level_table

SIGMA, DELTA, K, SIZE = 0.01, 0.0125, 12, 8
BLUR = DCTBlur(blur_schedule(K, 0.5, 5.0), SIZE, SIZE)
FREQUENCY = torch.arange(SIZE, dtype=torch.float32)
VARIANCES = 0.5 / (1 + FREQUENCY[:, None] ** 2 + FREQUENCY**2) ** 1.5
"""Of the DCT coefficients of the images below: float32 (H, W), falling as those of natural images do."""
MEAN = torch.full((1, 1, SIZE, SIZE), 0.5)


def gaussian_images(count: int, seed: int = 0) -> torch.Tensor:
    """Images whose DCT coefficients are independent normals with `VARIANCES`."""
    eps = torch.from_numpy(np.random.default_rng(seed).standard_normal((count, 1, SIZE, SIZE)).astype(np.float32))
    return MEAN + idct2(eps * VARIANCES.sqrt(), BLUR.D_H, BLUR.D_W)


def best_denoiser(u: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """f(u_k, k) with the posterior mean of A_{k-1} u_0, which is linear for such images."""
    before, after = BLUR.decay(k - 1), BLUR.decay(k)
    gain = before * after * VARIANCES / (after**2 * VARIANCES + SIGMA**2)
    return MEAN + idct2(gain * dct2(u - MEAN, BLUR.D_H, BLUR.D_W), BLUR.D_H, BLUR.D_W) - u


def expected_squared_error(k: int) -> float:
    """E ||A_{k-1} u_0 - E[A_{k-1} u_0 | u_k]||^2, the sum of the posterior variances."""
    before, after = (BLUR.decay(torch.tensor([level]))[0, 0].double() for level in (k - 1, k))
    return float((before**2 * VARIANCES * SIGMA**2 / (after**2 * VARIANCES + SIGMA**2)).sum())


def batches(u: torch.Tensor, size: int = 64) -> Iterator[Batch]:
    for images, indices in zip(u.split(size), torch.arange(len(u)).split(size), strict=True):
        yield Batch(images, indices, ())


def estimator(batch_size: int = 256, protocol: str = "paper") -> BoundEstimator:
    precision = Precision.named(torch.device("cpu"), "float32")
    return BoundEstimator(best_denoiser, BLUR, precision, SIGMA, protocol, batch_size)


IMAGES = gaussian_images(500)
BANK = PriorBank.from_images(MEAN, BLUR)
EXACT = estimator().measure(batches(IMAGES), BANK, seed=3)


def closed_form(protocol: str) -> dict[str, float]:
    """Expectations of the bound's parts over such images, for a prior of one component at their mean."""
    N = SIZE**2
    constant = 0.5 * (SIGMA**2 / DELTA**2 * N - N + 2 * N * math.log(DELTA / SIGMA))
    kept = BLUR.decay(torch.tensor([K]))[0, 0].double()
    prior = constant + 0.5 * float((kept**2 * VARIANCES).sum()) / DELTA**2
    levels = range(2, K + 1) if protocol == "paper" else range(1, K)
    intermediate = sum(constant + 0.5 * expected_squared_error(k) / DELTA**2 for k in levels)
    reconstruction = 0.5 * expected_squared_error(1) / DELTA**2 + N * math.log(DELTA * math.sqrt(2 * math.pi))
    return {
        "prior": prior,
        "intermediate": intermediate,
        "reconstruction": reconstruction,
        "total": prior + intermediate + reconstruction,
    }


@pytest.mark.parametrize("num_levels", [None, 4])
@pytest.mark.parametrize("protocol", ["paper", "released"])
def test_known_answer(protocol: str, num_levels: int | None) -> None:
    """Every part of the bound of the best model on Gaussian data is its expectation, within the standard error."""
    bound = estimator(protocol=protocol).measure(batches(IMAGES), BANK, 0, num_levels).bound(BANK, SIGMA, DELTA)
    for name, expected in closed_form(protocol).items():
        found = Estimate.of(getattr(bound, name))
        assert abs(found.value - expected) < 3 * found.standard_error, name
        assert found.standard_error < 0.1 * abs(expected)


def test_another_model_is_worse() -> None:
    """The bound of the best model is the smallest: on the same images with the same noise, doing nothing costs more."""
    idle = BoundEstimator(lambda u, k: torch.zeros_like(u), BLUR, estimator().precision, SIGMA, "paper", 256)
    bound = idle.measure(batches(IMAGES), BANK, 3).bound(BANK, SIGMA, DELTA)
    difference = Estimate.of(bound.total - EXACT.bound(BANK, SIGMA, DELTA).total)
    assert difference.value > 50 * difference.standard_error


def test_squared_errors_by_level() -> None:
    rows = level_table(EXACT, SIGMA, DELTA)
    assert [row.k for row in rows] == list(range(1, K + 1))
    for row in rows:
        assert row.num_images == len(IMAGES)
        assert abs(row.squared_error.value - expected_squared_error(row.k)) < 4 * row.squared_error.standard_error
    bound = EXACT.bound(BANK, SIGMA, DELTA)
    assert sum(row.term.value for row in rows[1:]) == pytest.approx(bound.intermediate.mean().item())
    assert rows[0].term.value == pytest.approx(bound.reconstruction.mean().item())


@given(st.floats(0, 100), st.integers(1, 10_000), st.floats(0.001, 1), st.floats(0.1, 10))
def test_terms_against_the_equations(squared_error: float, N: int, sigma: float, ratio: float) -> None:
    delta, error = ratio * sigma, torch.tensor([squared_error], dtype=torch.float64)
    L = 0.5 * (sigma**2 / delta**2 * N - N + squared_error / delta**2 + 2 * N * math.log(delta / sigma))
    assert intermediate_term(error, N, sigma, delta).item() == pytest.approx(L, rel=1e-9, abs=1e-6)
    L_0 = 0.5 * squared_error / delta**2 + N * math.log(delta * math.sqrt(2 * math.pi))
    assert reconstruction_term(error, N, delta).item() == pytest.approx(L_0, rel=1e-9, abs=1e-6)


def test_divergences_against_torch() -> None:
    """A term is the divergence between two Gaussians, the reconstruction minus a log density."""
    a, b = gaussian_images(2).double()
    error = (a - b).square().sum()
    p, q = torch.distributions.Normal(a, SIGMA), torch.distributions.Normal(b, DELTA)
    divergence = torch.distributions.kl_divergence(p, q).sum()
    torch.testing.assert_close(intermediate_term(error, a.numel(), SIGMA, DELTA), divergence)
    torch.testing.assert_close(reconstruction_term(error, a.numel(), DELTA), -q.log_prob(a).sum())


def test_bits_per_dim() -> None:
    """A model that spreads its mass evenly over [0, 1]^N has a density of 1 and needs 8 bits for each of 256 values."""
    zero = torch.zeros(3, dtype=torch.float64)
    assert Bound(zero, zero[:, None], 1.0, zero, 10).bits_per_dim.tolist() == [8.0] * 3
    one_bit_less = Bound(zero - 10 * math.log(2), zero[:, None], 1.0, zero, 10)
    torch.testing.assert_close(one_bit_less.bits_per_dim, zero + 7)


def test_sums_of_both_protocols() -> None:
    """The release has level 1 in place of level K."""
    assert list(intermediate_levels(5, "paper")) == [2, 3, 4, 5]
    assert list(intermediate_levels(5, "released")) == [1, 2, 3, 4]
    released = estimator(protocol="released").measure(batches(IMAGES), BANK, 3).bound(BANK, SIGMA, DELTA)
    paper = EXACT.bound(BANK, SIGMA, DELTA)
    torch.testing.assert_close(released.terms[:, 1:], paper.terms[:, :-1])
    torch.testing.assert_close(released.total - released.terms[:, 0], paper.total - paper.terms[:, -1])


def test_one_level_has_no_intermediate_terms() -> None:
    blur = DCTBlur(blur_schedule(1, 0.5, 5.0), SIZE, SIZE)
    bank = PriorBank.from_images(MEAN, blur)
    small = BoundEstimator(lambda u, k: torch.zeros_like(u), blur, estimator().precision, SIGMA, "paper", 8)
    bound = small.measure(batches(IMAGES[:5]), bank, 0, 3).bound(bank, SIGMA, DELTA)
    torch.testing.assert_close(bound.total, bound.prior + bound.reconstruction)
    torch.testing.assert_close(bound.prior, prior_kl_bound(IMAGES[:5], bank, SIGMA, DELTA))


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 1000))
def test_one_level_from_each_stratum(num_levels: int, num_draws: int, seed: int) -> None:
    levels = range(2, num_levels + 2)
    drawn = draw_strata(seed, 5, levels, num_draws)
    assert drawn == sorted(drawn) == draw_strata(seed, 5, levels, num_draws)
    if num_draws >= num_levels:
        assert drawn == list(levels)
    else:
        for stratum, level in enumerate(drawn):
            assert stratum * num_levels / num_draws - 1 < level - 2 < (stratum + 1) * num_levels / num_draws


def test_levels_are_equally_likely() -> None:
    """7 levels in 3 strata: strata that end within a level share it fairly."""
    counts = np.bincount([k for i in range(7000) for k in draw_strata(1, i, range(2, 9), 3)])
    np.testing.assert_allclose(counts[2:], 3000, atol=5 * math.sqrt(3000))


def subset(levels: torch.Tensor) -> Measurement:
    """What measuring at these levels (B, n) would have given: the noise belongs to the level, so it is part of `EXACT`."""
    errors = EXACT.squared_errors.gather(1, levels - 2)
    return Measurement(levels, errors, EXACT.first_errors, EXACT.projected, EXACT.num_levels, EXACT.num_pixels)


@pytest.mark.parametrize("num_draws", [3, 4, 7])
def test_strata_beat_independent_draws(num_draws: int) -> None:
    """For the same number of network calls, with errors that are as computed in closed form; and neither has a bias."""
    exact = EXACT.bound(BANK, SIGMA, DELTA)
    levels, rng = intermediate_levels(K, "paper"), np.random.default_rng(0)
    errors: dict[str, list[float]] = {"stratified": [], "independent": []}
    for seed in range(100):
        drawn = {
            "stratified": torch.tensor([draw_strata(seed, i, levels, num_draws) for i in range(len(IMAGES))]),
            "independent": torch.from_numpy(rng.integers(2, K + 1, (len(IMAGES), num_draws))),
        }
        for name, chosen in drawn.items():
            bound = subset(chosen).bound(BANK, SIGMA, DELTA)
            errors[name].append((bound.total - exact.total).mean().item())
    stratified, independent = drawing_errors(exact.terms, num_draws)
    assert independent > 1.5 * stratified
    for name, expected in (("stratified", stratified), ("independent", independent)):
        found = np.array(errors[name])
        assert np.sqrt(np.mean(found**2)) == pytest.approx(expected, rel=0.25), name
        assert abs(found.mean()) < 4 * expected / math.sqrt(len(found)), name


def test_estimates_agree_with_all_levels() -> None:
    """Network calls at drawn levels are those that looking at all levels makes."""
    estimate = estimator().measure(batches(IMAGES), BANK, 3, 4)
    torch.testing.assert_close(estimate.squared_errors, subset(estimate.levels).squared_errors, rtol=1e-5, atol=1e-8)
    exact, found = EXACT.bound(BANK, SIGMA, DELTA), estimate.bound(BANK, SIGMA, DELTA)
    assert not estimate.exact
    assert EXACT.exact
    difference = Estimate.of(found.total - exact.total)
    assert abs(difference.value) < 3 * difference.standard_error
    assert estimator().measure(batches(IMAGES[:9]), BANK, 3, 100).exact


def test_batch_size_does_not_matter() -> None:
    one = estimator(256).measure(batches(IMAGES[:20], 20), BANK, 7, 4)
    other = estimator(3).measure(batches(IMAGES[:20], 6), BANK, 7, 4)
    assert torch.equal(one.levels, other.levels)
    torch.testing.assert_close(one.squared_errors, other.squared_errors, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(one.bound(BANK, SIGMA, DELTA).total, other.bound(BANK, SIGMA, DELTA).total, rtol=1e-5, atol=0)
    assert not torch.equal(one.levels, estimator().measure(batches(IMAGES[:20]), BANK, 8, 4).levels)


def test_prior_skips_only_what_is_far() -> None:
    """Over many blocks, most of them out of reach, against all pairs at once."""
    train, test = gaussian_images(3000, 1), gaussian_images(300, 2)
    bank = PriorBank.from_images(train, BLUR)
    x, y = (bank.project(u).double().flatten(1) / DELTA for u in (test, train))
    constant = intermediate_term(torch.zeros(()), SIZE**2, SIGMA, DELTA)
    expected = constant + math.log(3000) - torch.logsumexp(-torch.cdist(x, y).square() / 2, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model_code.elbo.BANK_CHUNK", 64)
        patch.setattr("model_code.elbo.TEST_CHUNK", 16)
        torch.testing.assert_close(prior_kl_bound(test, bank, SIGMA, DELTA), expected, rtol=1e-6, atol=1e-6)
