"""Sampling noise: the standard deviation of p(u_{k-1} | u_k), one number for all or one per level and frequency.

Among Gaussians with a given mean and a covariance that is diagonal in the cosine basis, the nearest to q(u_{k-1} | u_k) has the
variance sigma^2 + E_k, where E_k is the mean squared error of the mean in that frequency (Bao et al., 2022, have the argument
for diffusion models; here it is used in the basis in which heat is diagonal). At k = 1 the target u_0 has no noise, and the
variance is E_1 alone. Frequencies of about the same radius form a ring, in which E_k is averaged.
"""

import zlib
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch

from model_code.dct import dct2, dct_matrix, idct2

SMALLEST_VARIANCE = 1e-8
"""Of a ring at k = 1, where only the error counts: a frequency in which all training images agree would have none."""


class SamplingNoise(Protocol):
    """What sampling and evaluation know of the sampling noise. What it means is the process's business."""

    label: str
    """Its name in directories and records: "0.0125" or "spectral"."""
    prior_std: float
    """Standard deviation of the components of the prior over u_K."""

    def checksum(self) -> int:
        """A number that tells one noise from another of the same label."""


@runtime_checkable
class GaussianNoise(SamplingNoise, Protocol):
    """Noise with a variance for each level and ring of frequencies."""

    def scaled(self, eps: torch.Tensor, k: int) -> torch.Tensor:
        """Standard normal eps (B, C, H, W) with the standard deviation of step k, from level k to k - 1."""

    def variances(self, k: torch.Tensor, num_rings: int) -> torch.Tensor:
        """The variance in each ring at int64 levels k (B,): float64 (B, num_rings)."""


class IsotropicNoise:
    """The paper's: the same delta at all levels and frequencies."""

    def __init__(self, delta: float) -> None:
        self.delta = self.prior_std = delta
        self.label = f"{delta:g}"

    def scaled(self, eps: torch.Tensor, k: int) -> torch.Tensor:
        """delta * eps."""
        return self.delta * eps

    def checksum(self) -> int:
        """0: the label says it all."""
        return 0

    def variances(self, k: torch.Tensor, num_rings: int) -> torch.Tensor:
        """delta^2 everywhere."""
        return torch.full((len(k), num_rings), self.delta**2, dtype=torch.float64, device=k.device)


class SpectralNoise:
    """Noise whose variance sigma^2 + E_k[r] depends on the level k and the ring r."""

    label = "spectral"

    def __init__(self, errors: torch.Tensor, sigma: float, height: int, width: int) -> None:
        """errors: E, the mean squared error of one coefficient by level and ring, (K + 1, R); row 0 is not used."""
        self.errors, self.prior_std = errors.double(), sigma
        self.variance = self.errors + sigma**2
        self.variance[1] = self.errors[1].clamp(min=SMALLEST_VARIANCE)
        self._rings = rings(height, width)
        self._D_H, self._D_W = dct_matrix(height).float(), dct_matrix(width).float()

    def scaled(self, eps: torch.Tensor, k: int) -> torch.Tensor:
        """eps filtered in the cosine basis, which is orthonormal: there, too, it is standard normal."""
        self._D_H, self._D_W = self._D_H.to(eps.device), self._D_W.to(eps.device)
        std = self.variance[k].sqrt().float()[self._rings].to(eps.device)
        return idct2(std * dct2(eps, self._D_H, self._D_W), self._D_H, self._D_W)

    def checksum(self) -> int:
        """Of the errors."""
        return zlib.crc32(self.errors.float().cpu().numpy().tobytes())

    def variances(self, k: torch.Tensor, num_rings: int) -> torch.Tensor:
        """sigma^2 + E_k[r]; at k = 1 E_1[r]."""
        assert num_rings == self.variance.shape[1]
        return self.variance.to(k.device)[k]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Plain tensors for a checkpoint: float32, 4 K R bytes."""
        return {"errors": self.errors.float()}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, torch.Tensor], sigma: float, height: int, width: int) -> "SpectralNoise":
        """The noise that `state_dict` described."""
        return cls(state["errors"], sigma, height, width)


def rings(height: int, width: int) -> torch.Tensor:
    """The ring of each frequency, its distance from the constant in steps of the longer axis, rounded: int64 (H, W)."""
    longer = max(height, width)
    n = torch.arange(height, dtype=torch.float64)[:, None] * longer / height
    m = torch.arange(width, dtype=torch.float64) * longer / width
    return (n**2 + m**2).sqrt().round().long()


def ring_sums(squares: torch.Tensor) -> torch.Tensor:
    """Sums over the coefficients of each ring and over channels: (B, C, H, W) to float64 (B, R)."""
    ring = rings(*squares.shape[2:]).flatten().to(squares.device)
    sums = torch.zeros(len(squares), int(ring.max()) + 1, dtype=torch.float64, device=squares.device)
    return sums.index_add_(1, ring, squares.double().sum(1).flatten(1))
