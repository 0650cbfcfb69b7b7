"""Distances between features: against clean-fid, written-out sums, known answers and repeated draws."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from cleanfid import fid as cleanfid_fid

from scripts.evaluation.distances import Estimate, Gaussian, frechet_distance, frechet_estimate, kernel_estimate, prdc_estimates

CPU = torch.device("cpu")


def features(seed: int, count: int, d: int = 6) -> np.ndarray:
    """Correlated, not centred, float32 (count, d); the same distribution for every seed."""
    mixing = np.random.default_rng(99).standard_normal((d, d)) / d**0.5
    return (np.random.default_rng(seed).standard_normal((count, d)) @ mixing + 0.3).astype(np.float32)


def test_frechet_distance_is_clean_fids() -> None:
    a, b = Gaussian.of(features(0, 60)), Gaussian.of(1.3 * features(1, 50) + 0.2)
    expected = cleanfid_fid.frechet_distance(a.mu, a.sigma, b.mu, b.sigma)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_estimate(features(0, 60), b).value == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_with_a_known_answer() -> None:
    """Diagonal covariances: the roots of variances, one by one; variances of 0 among them."""
    a = Gaussian(np.array([1.0, 2, 3]), np.diag([4.0, 0, 1]))
    b = Gaussian(np.array([1.0, 2, 5]), np.diag([1.0, 9, 0]))
    assert frechet_distance(a, b) == pytest.approx(4 + 1 + 9 + 1, abs=1e-12)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)


def test_frechet_distance_of_singular_covariances() -> None:
    """Fewer images than features: finite, symmetric, no less than 0, and 0 from itself."""
    a, b = Gaussian.of(features(0, 10, 40)), Gaussian.of(features(1, 15, 40))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)
    assert frechet_distance(a, b) > 1
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert np.isfinite(frechet_estimate(features(0, 10, 40), b).standard_error)


def test_kernel_distance_is_clean_fids() -> None:
    """With as many images on either side as in a subset, all subsets are the same, whatever their order."""
    x, y = features(0, 40), 1.1 * features(1, 40)
    assert kernel_estimate(x, y, 0).value == pytest.approx(cleanfid_fid.kernel_distance(y, x), rel=1e-5)


def test_kernel_distance_is_a_function_of_the_seed() -> None:
    x, y = features(0, 60), features(1, 40)
    assert kernel_estimate(x, y, 5) == kernel_estimate(x, y, 5)
    assert kernel_estimate(x, y, 5).value != kernel_estimate(x, y, 6).value


@pytest.mark.parametrize("score", ["FID", "KID", "Precision", "Recall", "Density", "Coverage"])
def test_standard_errors_are_those_of_repeated_draws(score: str) -> None:
    """The standard deviation over fresh sets of samples; those by jackknife tend to be on the large side."""
    reference = features(1000, 400, 20)
    moments = Gaussian.of(reference)
    estimators: dict[str, Callable[[np.ndarray], Estimate]] = {
        "FID": lambda x: frechet_estimate(x, moments),
        "KID": lambda x: kernel_estimate(x, reference, 0),
    }
    estimate = estimators.get(score, lambda x: prdc_estimates(x, reference, CPU)[score])
    scale = 0.6 if score in ("Recall", "Coverage") else 1.3  # away from 1, where there is nothing to measure
    found = [estimate(scale * features(seed, 200, 20)) for seed in range(25 if score == "KID" else 60)]
    assert {one.num_images for one in found} == {200}
    ratio = np.mean([one.standard_error for one in found]) / np.std([one.value for one in found], ddof=1)
    assert 0.7 < ratio < 1.6, (ratio, found[0])


def test_precision_recall_density_coverage_by_brute_force() -> None:
    """Every distance written out, on sets so small that every ball is of a different size."""
    x, y, k = features(0, 17), 1.2 * features(1, 23), 5

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.sqrt(((a.astype(float) - b) ** 2).sum()))

    def radii(points: np.ndarray) -> list[float]:
        return [sorted(distance(a, b) for j, b in enumerate(points) if i != j)[k - 1] for i, a in enumerate(points)]

    radius_x, radius_y = radii(x), radii(y)
    in_real = [[distance(a, b) < radius for b, radius in zip(y, radius_y, strict=True)] for a in x]
    in_generated = [[distance(a, b) < radius for b in y] for a, radius in zip(x, radius_x, strict=True)]
    found = prdc_estimates(x, y, CPU)
    assert found["Precision"].value == pytest.approx(np.mean([any(row) for row in in_real]))
    assert found["Density"].value == pytest.approx(np.mean([sum(row) / k for row in in_real]))
    assert found["Recall"].value == pytest.approx(np.mean([any(column) for column in zip(*in_generated, strict=True)]))
    assert found["Coverage"].value == pytest.approx(np.mean([any(column) for column in zip(*in_real, strict=True)]))


def test_distances_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = features(0, 50), features(1, 60)
    whole = prdc_estimates(x, y, CPU)
    monkeypatch.setattr("scripts.evaluation.distances.ROWS", 7)
    assert prdc_estimates(x, y, CPU) == whole
