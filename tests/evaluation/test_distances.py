"""Distances between features: against clean-fid, written-out sums, known answers and repeated
draws.
"""

import numpy as np
import prdc
import pytest
import torch
from cleanfid import fid as cleanfid_fid

from scripts.estimate import wilson_interval
from scripts.evaluation.distances import (
    Gaussian,
    frechet_estimate,
    frechet_of_reference,
    kernel_estimate,
    prdc_estimates,
)

CPU = torch.device("cpu")


def features(seed: int, count: int, d: int = 6) -> np.ndarray:
    """Correlated, not centred, float32 (count, d); the same distribution for every seed."""
    mixing = np.random.default_rng(99).standard_normal((d, d)) / d**0.5
    return (np.random.default_rng(seed).standard_normal((count, d)) @ mixing + 0.3).astype(
        np.float32
    )


def test_frechet_distance_is_clean_fids() -> None:
    x, b = features(0, 60), Gaussian.of(1.3 * features(1, 50) + 0.2)
    a = Gaussian.of(x)
    expected = cleanfid_fid.frechet_distance(a.mu, a.sigma, b.mu, b.sigma)
    assert frechet_estimate(x, b)[0].value == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_singular_covariances() -> None:
    """Fewer images than features: finite, symmetric, and 0 from itself."""
    x, y = features(0, 10, 40), features(1, 15, 40)
    found = frechet_estimate(x, Gaussian.of(y))[0]
    assert found.value == pytest.approx(frechet_estimate(y, Gaussian.of(x))[0].value, rel=1e-6)
    assert found.value > 1
    assert np.isfinite(found.standard_error)
    assert frechet_estimate(x, Gaussian.of(x))[0].value == pytest.approx(0, abs=1e-6)


def test_kernel_distance_is_clean_fids() -> None:
    """With as many images on either side as in a subset, all subsets are the same, whatever their
    order.
    """
    x, y = features(0, 40), 1.1 * features(1, 40)
    assert kernel_estimate(x, y, 0).value == pytest.approx(
        cleanfid_fid.kernel_distance(y, x), rel=1e-5
    )


def test_kernel_distance_is_a_function_of_the_seed() -> None:
    x, y = features(0, 60), features(1, 40)
    assert kernel_estimate(x, y, 5) == kernel_estimate(x, y, 5)
    assert kernel_estimate(x, y, 5).value != kernel_estimate(x, y, 6).value


@pytest.mark.parametrize(
    ("d", "scale", "reference_images", "subsets"),
    [(60, 1.0, 600, 8), (6, 1.3, 60, 2), (6, 1.3, 150, 8)],
)
def test_kernel_standard_error_is_that_of_repeated_draws(
    d: int, scale: float, reference_images: int, subsets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A factor of 1.3 would be noticed; first where samples have the reference's distribution."""
    monkeypatch.setattr("scripts.evaluation.distances.SUBSETS", subsets)
    reference = features(1000, reference_images, d)
    found = [kernel_estimate(scale * features(seed, 60, d), reference, seed) for seed in range(150)]
    stated = np.mean([one.standard_error**2 for one in found])
    assert 0.83 < np.sqrt(stated / np.var([one.value for one in found], ddof=1)) < 1.2


def test_frechet_distance_of_draws_from_the_reference() -> None:
    moments = Gaussian(np.zeros(6), np.diag([4.0, 2, 1, 1, 0.5, 0]))
    rng = np.random.default_rng(0)
    found = [
        frechet_estimate(rng.standard_normal((300, 6)) @ moments.sigma**0.5, moments)[0].value
        for _ in range(200)
    ]
    assert frechet_of_reference(moments, 300) == pytest.approx(np.mean(found), rel=0.08)


@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("scale", [0.6, 1.2, 0])
def test_precision_recall_density_coverage_are_those_of_the_package_prdc(
    k: int, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where distances are computed in blocks, and where balls have no extent, as half of the
    images are the same one.
    """
    x, y = features(0, 170), (scale or 1) * features(1, 230)
    if scale == 0:
        x[:85] = y[0]
    expected = prdc.compute_prdc(y, x, k)
    found = prdc_estimates(x, y, k, CPU)
    values = {score.lower(): estimate.value for score, estimate in found.items()}
    assert values == pytest.approx(expected)
    monkeypatch.setattr("scripts.evaluation.distances.ROWS", 7)
    assert prdc_estimates(x, y, k, CPU) == found


def test_intervals_of_proportions() -> None:
    assert wilson_interval(0, 500) == pytest.approx((0, 0.00762), abs=1e-5)
    assert wilson_interval(0.1, 50) == pytest.approx((0.04348, 0.21361), abs=1e-4)
    precision = prdc_estimates(features(0, 60), features(1, 60), 5, CPU)["Precision"]
    low, high = precision.wilson()
    assert low < precision.value < high
    assert high - low == pytest.approx(4 * precision.standard_error, rel=0.2)
