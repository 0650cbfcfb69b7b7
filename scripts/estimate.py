"""A measured value with its standard error, and confidence intervals of proportions."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Z95 = 1.959964
"""The standard normal distribution's 97.5% quantile."""


@dataclass(frozen=True)
class Estimate:
    """A value, its standard error (infinite where it is not known) and the number of images behind it."""

    value: float
    standard_error: float
    num_images: int

    @classmethod
    def of(cls, values: "torch.Tensor") -> "Estimate":
        """The mean of independent values (B,), in float64."""
        values = values.double()
        error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.inf
        return cls(values.mean().item(), error, len(values))

    def __str__(self) -> str:
        error = f" +- {self.standard_error:.2g}" if math.isfinite(self.standard_error) else ""
        return f"{self.value:.6g}{error}"

    def wilson(self) -> tuple[float, float]:
        """`wilson_interval` of a proportion of images.

        Where images are not independent, as for recall, the count is the one that the standard error corresponds to,
        p (1 - p) / SE^2 (Korn and Graubard, 1998).
        """
        variance = self.value * (1 - self.value)
        known = variance > 0 and 0 < self.standard_error < math.inf
        return wilson_interval(self.value, variance / self.standard_error**2 if known else self.num_images)


def wilson_interval(proportion: float, count: float) -> tuple[float, float]:
    """Wilson's 95% confidence interval (1927) of a proportion among `count` independent images; (0, 0.0076) for 0 of 500."""
    centre = proportion + Z95**2 / (2 * count)
    half = Z95 * math.sqrt(proportion * (1 - proportion) / count + Z95**2 / (4 * count**2))
    scale = 1 + Z95**2 / count
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
