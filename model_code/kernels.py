"""Reverse kernels: the distributions p(u_j | u_k) that one step of the reverse process draws from.

A chain is the list of levels that a sample visits, K first and 0 last; j is the level that follows k in it. All are Gaussian.
The paper's has the network's mean and one standard deviation, delta, for all levels and frequencies. An `AffineKernel` corrects
mean and variance per radial bin of frequencies; where its numbers come from is in `calibration.py`.
"""

import copy
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise

import torch

from model_code.dct import Basis, Tables

Chain = tuple[int, ...]


class ReverseKernel(ABC):
    """p(u_j | u_k) for each level k of a chain but the last."""

    label: str
    """Its name in directories and records: "0.0125", "spectral" or "calibrated"."""
    chain: Chain
    """The levels that are visited, the highest first, 0 last."""

    prior_std: float
    """Standard deviation of the noise on the chain's first state, at K that of the prior's components."""

    @abstractmethod
    def mean(self, u_k: torch.Tensor, prediction: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """The mean of p(u_j | u_k), at j = 0 the sample itself, from what the process predicts at u_k: float32 (B, C, H, W).

        u_k and prediction are (B, C, H, W), k int64 (B,) levels of the chain.
        """

    @abstractmethod
    def step(self, mean: torch.Tensor, k: int, eps: torch.Tensor) -> torch.Tensor:
        """A draw from p(u_j | u_k) with the given mean, from standard normal eps (B, C, H, W)."""

    def checksum(self) -> int:
        """A number that tells one kernel from another of the same label and chain."""
        return 0

    def mean_checksum(self) -> int:
        """A number that tells its mean from another's along the same chain."""
        return 0


class GaussianKernel(ReverseKernel):
    """A kernel with a covariance that is diagonal in a cosine basis, as the bound needs it."""

    basis: Basis
    bins: torch.Tensor
    """The bin of each coefficient: int64 (C, H, W)."""

    @abstractmethod
    def variances(self, k: torch.Tensor) -> torch.Tensor:
        """The variance in each bin at int64 levels k (B,): float64 (B, R)."""


def arrivals(chain: Chain, K: int) -> torch.Tensor:
    """The level that follows k in the chain, for every level k: int64 (K + 1,), 0 for levels that are not in it."""
    after = torch.zeros(K + 1, dtype=torch.int64)
    for k, j in pairwise(chain):
        after[k] = j
    return after


def starting_at(kernel: ReverseKernel, k: int) -> ReverseKernel:
    """The same kernel along its chain from level k on."""
    shorter = copy.copy(kernel)
    shorter.chain = kernel.chain[kernel.chain.index(k) :]
    return shorter


def subchain(text: str, levels: Chain) -> Chain:
    """The levels of a chain that are visited: "N" for N steps, evenly spaced, or all of them, "K,...,0".

    Raises ValueError for other texts and other levels.
    """
    most = len(levels) - 1
    if "," in text and all(part.strip().isdecimal() for part in text.split(",")):
        chain = tuple(map(int, text.split(",")))
        if (chain[0], chain[-1]) != (levels[0], 0) or list(chain) != sorted(set(chain) & set(levels), reverse=True):
            raise ValueError(f"must go down from {levels[0]} to 0, each once, along levels that are trained")
        return chain
    if not text.isdecimal() or not 1 <= int(text) <= most:
        levels_are = f"all levels from {levels[0]} to 0 with commas"
        raise ValueError(f"must be N from 1 to {most}, or {levels_are}; --steps also takes N:bound")
    return tuple(levels[round(i * most / int(text))] for i in range(int(text) + 1))


class IsotropicKernel(GaussianKernel):
    """The paper's: N(prediction, delta^2 I)."""

    def __init__(self, delta: float, chain: Chain, shape: tuple[int, int, int]) -> None:
        """shape: (C, H, W) of images."""
        self.delta = self.prior_std = delta
        self.bins, self.basis = torch.zeros(shape, dtype=torch.int64), Basis(*shape[1:])
        self.label, self.chain = f"{delta:g}", chain

    def mean(self, u_k: torch.Tensor, prediction: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """The prediction."""
        return prediction

    def step(self, mean: torch.Tensor, k: int, eps: torch.Tensor) -> torch.Tensor:
        """mean + delta eps (paper, Algorithm 2)."""
        return mean + self.delta * eps

    def variances(self, k: torch.Tensor) -> torch.Tensor:
        """delta^2."""
        return torch.full((len(k), 1), self.delta**2, dtype=torch.float64, device=k.device)


class AffineKernel(Tables, GaussianKernel):
    """N(a u_k + b f + c, diag(v)) in a cosine basis, where f = prediction - u_k.

    a, b and v depend on the level and the bin, c on the level and the coefficient. Without `gains` the mean is the
    prediction itself: a = b = 1, c = 0.
    """

    def __init__(
        self,
        label: str,
        chain: Chain,
        basis: Basis,
        bins: torch.Tensor,
        variance: torch.Tensor,
        prior_std: float,
        gains: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        """bins: int64 (C, H, W); variance (K + 1, R); gains: a and b (K + 1, R) and c (K + 1, C, h, w), which is 0 beyond the
        lowest h x w frequencies. Rows of levels outside the chain are not used.
        """
        self.label, self.chain, self.prior_std, self.basis, self.bins = label, chain, prior_std, basis, bins
        self.variance = variance.double()
        self._tables = [bins, variance.sqrt().float()]
        self._tables += [] if gains is None else [table.float() for table in gains]

    def mean(self, u_k: torch.Tensor, prediction: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """a u_k + b f + c."""
        bins, _, *gains = self._on(u_k.device)
        if not gains:
            return prediction
        a, b, c = (gain[k] for gain in gains)
        f = self.basis.coefficients(prediction - u_k)
        mean = a[:, bins] * self.basis.coefficients(u_k) + b[:, bins] * f
        mean[..., : c.shape[-2], : c.shape[-1]] += c
        return self.basis.images(mean)

    def step(self, mean: torch.Tensor, k: int, eps: torch.Tensor) -> torch.Tensor:
        """mean plus eps filtered in the basis, which is orthonormal: there, too, eps is standard normal."""
        bins, std, *_ = self._on(mean.device)
        return mean + self.basis.images(std[k][bins] * self.basis.coefficients(eps))

    def variances(self, k: torch.Tensor) -> torch.Tensor:
        """v in each bin."""
        return self.variance.to(k.device)[k]

    def checksum(self) -> int:
        """Of variances and gains at the levels of the chain."""
        return self._crc32(self._tables[1:])

    def mean_checksum(self) -> int:
        """Of bins and gains."""
        return zlib.crc32(self.bins.numpy().tobytes(), self._crc32(self._tables[2:]))

    def _crc32(self, tables: list[torch.Tensor]) -> int:
        used, value = list(self.chain[:-1]), 0
        for table in tables:
            value = zlib.crc32(table[used].cpu().numpy().tobytes(), value)
        return value


class PosteriorKernel(Tables, ReverseKernel):
    """For a process z_k = alpha_k x + sigma_k eps in each frequency: q(z_j | z_k, x) with the x that the predicted eps implies.

    Its standard deviation is multiplied by eta: 1 is ancestral sampling, 0 deterministic (DDIM, Song et al., 2021, in the basis
    in which blur is diagonal, as gDDIM).
    """

    def __init__(
        self,
        alpha_sigma: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
        K: int,
        basis: Basis,
        chain: Chain,
        eta: float,
    ) -> None:
        """alpha_sigma: int64 levels (B,) to alpha (B, 1, H, W) and sigma (B, 1, 1, 1), float64."""
        self.alpha_sigma, self.K, self.chain, self.eta = alpha_sigma, K, chain, eta
        self.label = "posterior" if eta == 1 else f"eta_{eta:g}"
        self.basis, self._tables = basis, [arrivals(chain, K)]

    @property
    def prior_std(self) -> float:  # type: ignore[override]
        """sigma_k of the chain's first level, 1 at K."""
        return 1.0 if self.chain[0] == self.K else self.alpha_sigma(torch.tensor([self.chain[0]]))[1].item()

    def after(self, k: torch.Tensor) -> torch.Tensor:
        """The levels that follow levels k (B,) in the chain."""
        return self._on(k.device)[0][k]

    def coefficients(self, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """For the steps from levels k (B,): what multiplies z_k and eps in the mean, and the variance of the posterior.

        With the estimate x = (z_k - sigma_k eps) / alpha_k, the mean is alpha_j x + sqrt(sigma_j^2 - eta^2 v) eps with
        v = sigma_j^2 sigma_{k|j}^2 / sigma_k^2, which for eta = 1 is the mean of q(z_j | z_k, x). Nothing is divided by
        small numbers. At j = 0 mean and variance are x and 0. Float64 (B, 1, H, W) each, by frequency.
        """
        (alpha_k, sigma_k), (alpha_j, sigma_j) = self.alpha_sigma(k), self.alpha_sigma(self.after(k))
        ratio = alpha_k / alpha_j
        variance = sigma_j**2 * (1 - (ratio * sigma_j / sigma_k) ** 2)
        of_eps = (sigma_j**2 - self.eta**2 * variance).clamp(min=0).sqrt() - sigma_k / ratio
        return 1 / ratio, of_eps, variance

    def mean(self, u_k: torch.Tensor, prediction: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """The posterior's mean."""
        (of_z, of_eps, _), hat = self.coefficients(k), self.basis.coefficients
        return self.basis.images(of_z.float() * hat(u_k) + of_eps.float() * hat(prediction))

    def step(self, mean: torch.Tensor, k: int, eps: torch.Tensor) -> torch.Tensor:
        """mean plus eps with eta times the posterior's standard deviation in each frequency."""
        if self.eta == 0:
            return mean
        _, _, variance = self.coefficients(torch.tensor([k], device=mean.device))
        return mean + self.basis.images(self.eta * variance.sqrt().float() * self.basis.coefficients(eps))
