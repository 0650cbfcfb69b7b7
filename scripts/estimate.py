"""A measured value with its standard error, and confidence intervals of proportions."""

import math
from dataclasses import dataclass

import numpy as np
import torch

Z95 = 1.959964
"""The standard normal distribution's 97.5% quantile."""


@dataclass(frozen=True)
class Estimate:
    """A value, its standard error (not finite where it is not known) and the number of images
    behind it."""

    value: float
    standard_error: float
    num_images: int
    num_groups: int | None = None
    """Initial images that these start from, over which the error is; None where all are
    independent."""

    @classmethod
    def of(cls, values: torch.Tensor, groups: np.ndarray | None = None) -> "Estimate":
        """Return the mean of values (B,), in float64, with `error_of_mean`."""
        array = values.double().cpu().numpy()
        return cls(float(array.mean()), error_of_mean(array, groups), len(array), count(groups))

    def __str__(self) -> str:
        if math.isfinite(self.standard_error):
            return f"{self.value:.6g} +- {self.standard_error:.2g}"
        return f"{self.value:.6g}" + (
            " (no error: one initial image)" if self.num_groups == 1 else ""
        )

    def effective_count(self) -> float:
        """Return the number of independent images that a proportion's standard error corresponds
        to.

        p (1 - p) / SE^2 (Korn and Graubard, 1998), or the number of groups where that is not known.
        """
        variance = self.value * (1 - self.value)
        if variance > 0 and 0 < self.standard_error < math.inf:
            return variance / self.standard_error**2
        return self.num_groups or self.num_images

    def wilson(self) -> tuple[float, float]:
        """`wilson_interval` of a proportion of images that may depend on each other."""
        return wilson_interval(self.value, self.effective_count())


def count(groups: np.ndarray | None) -> int | None:
    """Return how many groups there are."""
    return None if groups is None else len(set(groups.tolist()))


def error_of_mean(values: np.ndarray, groups: np.ndarray | None = None) -> float:
    """Return the standard error of the mean of values (N,) that are independent where their groups,
    int64 (N,), differ.

    That of a ratio estimator to first order (Liang and Zeger, 1986): deviations are summed over
    each group. For a nonlinear statistic values are its influences. None: every value is a group.
    Infinite for fewer than two groups.
    """
    sums = values - values.mean()
    if groups is not None:
        sums = np.bincount(np.unique(groups, return_inverse=True)[1], sums)
    G = len(sums)
    return math.sqrt((sums**2).sum() * G / (G - 1)) / len(values) if G > 1 else math.inf


def wilson_interval(proportion: float, count: float) -> tuple[float, float]:
    """Wilson's 95% confidence interval (1927) of a proportion among `count` independent images; (0,
    0.0076) for 0 of 500.
    """
    centre = proportion + Z95**2 / (2 * count)
    half = Z95 * math.sqrt(proportion * (1 - proportion) / count + Z95**2 / (4 * count**2))
    scale = 1 + Z95**2 / count
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
