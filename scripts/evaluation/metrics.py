"""The metrics that evaluate.py computes: another one is a `Metric` in `METRICS` below, and a value of --mode.

Imports nothing heavy: arithmetic is imported where it is called.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from scripts.evaluation.results import Result

if TYPE_CHECKING:
    import numpy as np
    import torch

    from scripts.evaluation.distances import Reference

FEW_TIMES = 3.0
"""FID below so many times the value for draws from the reference itself: its standard error is only rough."""


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


@dataclass(frozen=True)
class Metric:
    """One way to compare samples with a reference."""

    name: str
    """As in --mode."""
    scores: tuple[str, ...]
    """Its results' names, as in the log files."""
    needs: Literal["moments", "features"]
    """Mean and covariance of the reference's features, or the features themselves."""
    fewest: Callable[[int], int]
    """The fewest images on either side, for k neighbours."""
    lower_is_better: bool
    compute: Callable[[Inputs], list[Result]]
    """Results whose settings are only what is particular to this metric."""


def _fid(inputs: Inputs) -> list[Result]:
    from scripts.evaluation import distances

    estimate, influence = distances.frechet_estimate(inputs.generated, inputs.reference.gaussian)
    expected = distances.frechet_of_reference(inputs.reference.gaussian, len(inputs.generated))
    note = ""
    if estimate.value < FEW_TIMES * expected:
        note = f"its standard error is rough here, of first order: draws from the reference itself have about {expected:.3g}"
    return [Result("FID", estimate, {"standard_error_by": "influence functions, first order"}, per_image=influence, note=note)]


def _kid(inputs: Inputs) -> list[Result]:
    from scripts.evaluation import distances

    assert inputs.reference.features is not None
    return [Result("KID", distances.kernel_estimate(inputs.generated, inputs.reference.features, inputs.seed), {})]


def _prdc(inputs: Inputs) -> list[Result]:
    from scripts.evaluation.prdc import prdc_estimates

    assert inputs.reference.features is not None
    found = prdc_estimates(inputs.generated, inputs.reference.features, inputs.k, inputs.device)
    return [
        Result(score, estimate, {"k": inputs.k}, interval=None if score == "Density" else estimate.wilson())
        for score, estimate in found.items()
    ]


METRICS = (
    Metric("fid", ("FID",), "moments", lambda k: 2, True, _fid),
    Metric("kid", ("KID",), "features", lambda k: 2, True, _kid),
    Metric("prdc", ("Precision", "Recall", "Density", "Coverage"), "features", lambda k: k + 1, False, _prdc),
)
MODES: dict[str, tuple[Metric, ...]] = {metric.name: (metric,) for metric in METRICS} | {"all": METRICS}
"""Values of --mode besides elbo."""
LOWER_IS_BETTER = {"ELBO", "BPD"} | {score for metric in METRICS if metric.lower_is_better for score in metric.scores}
"""Scores whose lowest value is the best; of the others it is the highest."""
