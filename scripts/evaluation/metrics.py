"""The metrics that evaluate.py computes: another one is a `Metric` in `METRICS` below, and its name
a value of --mode in scripts/config/flags.py.

Imports nothing heavy: arithmetic is imported where it is called.
"""

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from scripts.evaluation.results import Result

if TYPE_CHECKING:
    import numpy as np
    import torch

    from scripts.evaluation.distances import Reference
    from scripts.evaluation.pixels import PixelInputs

FEW_TIMES = 3.0
"""FID below so many times the value for draws from the reference itself: its standard error is only
rough.
"""


@dataclass(frozen=True)
class Inputs:
    """What a metric may use."""

    generated: "np.ndarray"
    """Features of samples, float32 (N, d)."""
    reference: "Reference"
    seed: int
    k: int
    """Nearest neighbours in precision, recall, density and coverage."""
    device: "torch.device"
    groups: "np.ndarray | None" = None
    """Int64 (N,): samples of one group start from one initial image, and are not independent. None:
    all are."""


@dataclass(frozen=True)
class Metric:
    """One way to compare samples with a reference."""

    name: str
    """As in --mode."""
    scores: Mapping[str, float]
    """Its results' names, as in the log files, with the best value: infinite where lower or higher
    is always better.
    """
    needs: Literal["moments", "features", "pixels", "seeds"]
    """Mean and covariance of the reference's features, the features themselves, images, or images
    in groups from one seed.
    """
    fewest: Callable[[int], int]
    """The fewest images on either side, for k neighbours."""
    compute: Callable[[Any], list[Result]]
    """From `Inputs`, or `PixelInputs` where it needs pixels or seeds, to results, in their settings
    only what is particular.
    """


def _fid(inputs: Inputs) -> list[Result]:
    from scripts.evaluation import distances

    estimate, influence = distances.frechet_estimate(
        inputs.generated, inputs.reference.gaussian, inputs.groups
    )
    expected = distances.frechet_of_reference(
        inputs.reference.gaussian, estimate.num_groups or estimate.num_images
    )
    note = ""
    if estimate.value < FEW_TIMES * expected:
        note = f"its standard error is rough here, of first order: draws from the reference itself have about {expected:.3g}"
    return [
        Result(
            "FID",
            estimate,
            {"standard_error_by": "influence functions, first order"},
            per_image=influence,
            note=note,
        )
    ]


def _kid(inputs: Inputs) -> list[Result]:
    from scripts.evaluation import distances

    assert inputs.reference.features is not None
    features = inputs.reference.features
    return [
        Result(
            "KID",
            distances.kernel_estimate(inputs.generated, features, inputs.seed, inputs.groups),
            {},
        )
    ]


def _prdc(inputs: Inputs) -> list[Result]:
    from scripts.evaluation.prdc import prdc_estimates

    assert inputs.reference.features is not None
    found = prdc_estimates(
        inputs.generated, inputs.reference.features, inputs.k, inputs.device, inputs.groups
    )
    return [
        Result(
            score,
            estimate,
            {"k": inputs.k},
            interval=None if score == "Density" else estimate.wilson(),
        )
        for score, estimate in found.items()
    ]


def _measure(name: str) -> Callable[["PixelInputs"], list[Result]]:
    """The function `name` of the module of that name beside this one."""
    return lambda inputs: getattr(importlib.import_module(f"scripts.evaluation.{name}"), name)(
        inputs
    )


def _twice(**scores: float) -> dict[str, float]:
    """Scores in pixels and after a low-pass."""
    return scores | {f"{score}LowPass": best for score, best in scores.items()}


LOW, HIGH = -math.inf, math.inf
PRDC = dict.fromkeys(("Precision", "Recall", "Density", "Coverage"), HIGH)
COPYING = _twice(NearestRatio=1, NearerThanHeldOut=LOW, NearestIsOwnSeed=LOW)
DIVERSITY = _twice(WithinSeeds=HIGH, BetweenSeeds=HIGH, WithinAndBetween=1)
METRICS = (
    Metric("fid", {"FID": LOW}, "moments", lambda k: 2, _fid),
    Metric("kid", {"KID": LOW}, "features", lambda k: 2, _kid),
    Metric("prdc", PRDC, "features", lambda k: k + 1, _prdc),
    Metric(
        "spectrum",
        {"LogSpectralDistance": LOW, "VarianceRatio": 1},
        "pixels",
        lambda k: 2,
        _measure("spectrum"),
    ),
    Metric("copying", COPYING, "pixels", lambda k: 2, _measure("copying")),
    Metric("diversity", DIVERSITY, "seeds", lambda k: 4, _measure("diversity")),
)
MODES: dict[str, tuple[Metric, ...]] = {metric.name: (metric,) for metric in METRICS} | {
    "all": METRICS[:3]
}
"""Values of --mode besides elbo; all: those of features."""
BEST = {"ELBO": LOW, "BPD": LOW} | {
    score: best for metric in METRICS for score, best in metric.scores.items()
}


def distance_from_best(score: str, value: float) -> float:
    """A number that is the smaller, the better a score is."""
    best = BEST[score]
    return abs(value - best) if math.isfinite(best) else value if best < 0 else -value
