"""The metrics that evaluate.py computes: another one is a `Metric` in `METRICS` below, and a value of --mode.

Imports nothing heavy: arithmetic is imported where it is called.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    """Nearest neighbours in precision, recall, density and coverage; there are more images than that on either side."""
    device: "torch.device"


@dataclass(frozen=True)
class Metric:
    """One way to compare samples with a reference."""

    name: str
    """As in --mode."""
    needs_features: bool
    """Of the reference's images; otherwise their mean and covariance do."""
    compute: Callable[[Inputs], list[Result]]
    """Results whose settings are only what is particular to this metric."""


def _fid(inputs: Inputs) -> list[Result]:
    from scripts.evaluation import distances

    reference = inputs.reference.moments
    if reference is None:
        assert inputs.reference.features is not None
        reference = distances.Gaussian.of(inputs.reference.features)
    estimate, influence = distances.frechet_estimate(inputs.generated, reference)
    floor, note = distances.frechet_of_reference(reference, len(inputs.generated)), ""
    if estimate.value < FEW_TIMES * floor:
        note = f"its standard error is first order and rough here: draws from the reference itself would have about {floor:.3g}"
    return [Result("FID", estimate, {"standard_error_by": "influence functions, first order"}, per_image=influence, note=note)]


def _kid(inputs: Inputs) -> list[Result]:
    from scripts.evaluation import distances

    assert inputs.reference.features is not None
    return [Result("KID", distances.kernel_estimate(inputs.generated, inputs.reference.features, inputs.seed), {})]


def _prdc(inputs: Inputs) -> list[Result]:
    from scripts.evaluation import distances

    assert inputs.reference.features is not None
    found = distances.prdc_estimates(inputs.generated, inputs.reference.features, inputs.k, inputs.device)
    return [
        Result(score, estimate, {"k": inputs.k}, interval=None if score == "Density" else estimate.wilson())
        for score, estimate in found.items()
    ]


METRICS = (Metric("fid", False, _fid), Metric("kid", True, _kid), Metric("prdc", True, _prdc))
MODES: dict[str, tuple[Metric, ...]] = {metric.name: (metric,) for metric in METRICS} | {"all": METRICS}
"""Values of --mode besides elbo."""
LOWER_IS_BETTER = {"ELBO", "BPD", "FID", "KID"}
"""Scores whose lowest value is the best; of the others it is the highest."""
