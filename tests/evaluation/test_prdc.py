"""Precision, recall, density and coverage against the package of Naeem et al.

and repeated draws.
"""

import numpy as np
import prdc
import pytest

from scripts.estimate import wilson_interval
from scripts.evaluation.distances import prdc_estimates
from tests.evaluation.test_distances import CPU, features, spread_ratio


@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("scale", [0.6, 1.2])
def test_scores_are_those_of_the_package_prdc(
    k: int, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where distances are computed in blocks."""
    x, y = features(0, 170), scale * features(1, 230)
    expected = prdc.compute_prdc(y, x, k)
    found = prdc_estimates(x, y, k, CPU)
    assert {score.lower(): estimate.value for score, estimate in found.items()} == pytest.approx(
        expected
    )
    monkeypatch.setattr("scripts.evaluation.distances.ROWS", 7)
    assert prdc_estimates(x, y, k, CPU) == found


def test_standard_errors_of_shares_are_those_of_repeated_draws() -> None:
    """Those by jackknife are too large rather than too small."""
    reference = features(1000, 400, 20)
    for scale, scores in (
        (0.6, ("Recall", "Coverage")),
        (1.3, ("Precision", "Density")),
    ):  # away from 1 and from 0
        found = [
            prdc_estimates(scale * features(seed, 200, 20), reference, 5, CPU) for seed in range(50)
        ]
        for score in scores:
            assert 0.7 < spread_ratio([one[score] for one in found]) < 1.6, score


def test_intervals_hold_the_true_proportion() -> None:
    """At a precision near 1, where value +- error does not: 95% of the intervals, less chance."""
    reference = features(1000, 300, 4)
    found = [
        prdc_estimates(1.1 * features(seed, 60, 4), reference, 5, CPU)["Precision"]
        for seed in range(120)
    ]
    truth = np.mean([one.value for one in found])
    intervals = [one.wilson() for one in found]
    assert 0.9 < truth < 0.99
    assert np.mean([low <= truth <= high for low, high in intervals]) > 0.92
    low, high = wilson_interval(0, 500)
    assert (low, high) == pytest.approx((0, 0.00762), abs=1e-5)
    assert wilson_interval(0.1, 50) == pytest.approx((0.04348, 0.21361), abs=1e-4)


def test_coverage_of_duplicates_is_that_by_brute_force() -> None:
    """Samples whose ball has no extent are samples: 100 identical and 100 varied ones, and one
    image 200 times.
    """
    y = features(1, 300)
    for x in (
        np.concatenate([np.repeat(y[:1], 100, 0), features(2, 100)]),
        np.repeat(y[:1], 200, 0),
    ):
        between = np.linalg.norm(y[:, None].astype(float) - y, axis=-1)
        radius = np.sort(between, axis=1)[:, 5]  # after itself
        to_samples = np.linalg.norm(y[:, None].astype(float) - x, axis=-1).min(1)
        found = prdc_estimates(x, y, 5, CPU)["Coverage"]
        assert found.value == pytest.approx(np.mean(to_samples < radius))
        assert found.value > 0
