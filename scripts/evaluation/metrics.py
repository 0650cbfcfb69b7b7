"""The metrics that evaluate.py computes: another one is a `Metric` in `METRICS` below, and its name
a value of --mode in scripts/config/flags.py.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from scripts.estimate import Estimate
from scripts.evaluation import pixels
from scripts.evaluation.distances import (
    Reference,
    frechet_estimate,
    frechet_of_reference,
    kernel_estimate,
    prdc_estimates,
)
from scripts.evaluation.results import Result

FEW_TIMES = 3.0
"""FID below so many times the value for draws from the reference itself: its standard error is only
rough.
"""
LOW, HIGH = -math.inf, math.inf


@dataclass(frozen=True)
class Inputs:
    """What a metric of features may use."""

    generated: np.ndarray
    """Features of samples, float32 (N, d)."""
    reference: Reference
    seed: int
    k: int
    """Nearest neighbours in precision, recall, density and coverage."""
    device: torch.device
    groups: np.ndarray | None = None
    """Int64 (N,): samples of one group start from one initial image, and are not independent. None:
    all are."""
    labels: np.ndarray | None = None
    """Int64 (N,): the class that each sample is to be of, where they have one."""
    predict: Callable[[np.ndarray], np.ndarray] | None = None
    """From features to classes, where they are a classifier's."""


@dataclass(frozen=True)
class Metric:
    """One way to compare samples with a reference."""

    name: str
    """As in --mode."""
    needs: Literal["moments", "features", "pixels", "initial images"]
    """Mean and covariance of the reference's features, the features themselves, images, or images
    several of which start from each initial image.
    """
    fewest: Callable[[int], int]
    """The fewest images on either side, for k neighbours."""
    scores: Mapping[str, float]
    """Its results' names, as in the log files, with the best value: infinite where lower or higher
    is always better.
    """
    compute: Callable[[Any], list[Result]]
    """From `Inputs`, or `PixelInputs` where it needs images, to results, in their settings only
    what is particular.
    """


def fid(inputs: Inputs) -> list[Result]:
    """The Frechet distance, with a note where it is near that of draws from the reference."""
    gaussian = inputs.reference.gaussian
    estimate, influence = frechet_estimate(inputs.generated, gaussian, inputs.groups)
    expected = frechet_of_reference(gaussian, estimate.num_groups or estimate.num_images)
    note = ""
    if estimate.value < FEW_TIMES * expected:
        note = (
            "its standard error is rough here, of first order: draws from the reference itself "
            f"have about {expected:.3g}"
        )
    settings = {"standard_error_by": "influence functions, first order"}
    return [Result("FID", estimate, settings, per_image=influence, note=note)]


def kid(inputs: Inputs) -> list[Result]:
    """The kernel distance."""
    assert inputs.reference.features is not None
    features = inputs.reference.features
    estimate = kernel_estimate(inputs.generated, features, inputs.seed, inputs.groups)
    return [Result("KID", estimate, {})]


def prdc(inputs: Inputs) -> list[Result]:
    """Precision, recall, density and coverage; all but density are proportions."""
    assert inputs.reference.features is not None
    features = inputs.reference.features
    estimates = prdc_estimates(inputs.generated, features, inputs.k, inputs.device, inputs.groups)
    return [
        Result(score, one, {"k": inputs.k}, None if score == "Density" else one.wilson())
        for score, one in estimates.items()
    ]


def classes(inputs: Inputs) -> list[Result]:
    """The share of samples that a classifier takes for what they are to be."""
    assert inputs.predict is not None
    right = torch.from_numpy(inputs.predict(inputs.generated) == inputs.labels)
    estimate = Estimate.of(right, inputs.groups)
    return [Result("ClassAccuracy", estimate, {}, estimate.wilson())]


def _with_low_pass(**scores: float) -> dict[str, float]:
    return scores | {f"{score}LowPass": best for score, best in scores.items()}


SPECTRUM = {"LogSpectralDistance": LOW, "VarianceRatio": 1}
PRDC = dict.fromkeys(("Precision", "Recall", "Density", "Coverage"), HIGH)
COPYING = _with_low_pass(NearestRatio=1, NearerThanHeldOut=LOW, NearestIsOwnInit=LOW)
DIVERSITY = _with_low_pass(WithinInit=HIGH, BetweenInits=HIGH, WithinAndBetween=1)
METRICS = (
    Metric("fid", "moments", lambda k: 2, {"FID": LOW}, fid),
    Metric("kid", "features", lambda k: 2, {"KID": LOW}, kid),
    Metric("prdc", "features", lambda k: k + 1, PRDC, prdc),
    Metric("classes", "features", lambda k: 2, {"ClassAccuracy": HIGH}, classes),
    Metric("spectrum", "pixels", lambda k: 2, SPECTRUM, pixels.spectrum),
    Metric("copying", "pixels", lambda k: 2, COPYING, pixels.copying),
    Metric("diversity", "initial images", lambda k: 4, DIVERSITY, pixels.diversity),
)
MODES: dict[str, tuple[Metric, ...]] = {metric.name: (metric,) for metric in METRICS}
"""Values of --mode besides elbo; all: those of features."""
MODES["all"] = METRICS[:3]
BEST = {"ELBO": LOW, "BPD": LOW}
for _metric in METRICS:
    BEST |= _metric.scores


def distance_from_best(score: str, value: float) -> float:
    """A number that is the smaller, the better a score is."""
    best = BEST[score]
    if math.isfinite(best):
        return abs(value - best)
    return value if best == LOW else -value
