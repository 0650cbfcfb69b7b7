"""Reverse kernels p(z_j | z_k) = N(p z_k + y, diag(v)) of the Gaussian family, in the cosine basis.

y estimates r x, see `GaussianProcess`: uncalibrated, as the network's output says; calibrated, by
the best affine function of that and z_k in each bin of frequencies (`calibration.py`). v is delta^2
(isotropic, as in the paper), s^2 (posterior), or s^2 plus the measured squared error of y.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from model_code.dct import dct2, idct2, mix
from model_code.process import Chain, ReverseKernel, next_levels
from model_code.spectrum import bin_sums

if TYPE_CHECKING:
    from model_code.gaussian import GaussianProcess


class Fit(NamedTuple):
    """y = a z_k + b q + c with its mean squared error, where q is uncalibrated, for P steps.

    a, b and error are by bin, float64 (P, R); c (P, C, h, w) is of the lowest frequencies, 0 at
    others. Spectral kernels use the error alone.
    """

    a: Tensor
    b: Tensor
    c: Tensor
    error: Tensor


class GaussianKernel(ReverseKernel):
    """p(z_j | z_k) for the steps of a chain."""

    def __init__(
        self,
        process: GaussianProcess,
        label: str,
        chain: Chain,
        eta: float = 1.0,
        *,
        delta: float | None = None,
        fit: Fit | None = None,
        image_fit: Fit | None = None,
        bins: Tensor | None = None,
        planes: Tensor | None = None,
    ) -> None:
        """delta: the standard deviation of an isotropic kernel; fit: for the steps of the chain;
        image_fit: for steps from its levels to 0; bins: int64 (C, H, W), of its tables; planes: see
        `dct2`.
        """
        self.process, self.chain, self.eta, self.delta = process, chain, eta, delta
        self.label = label
        if eta != 1:
            self.label = f"eta_{eta:g}" if label == "posterior" else f"{label}_eta_{eta:g}"
        device = process.sigma.device
        bins = torch.zeros(process.shape, dtype=torch.int64) if bins is None else bins
        self.sizes = bin_sums(torch.ones(process.shape), bins)
        self.bins, self.planes = bins.to(device), planes
        self.next_level = next_levels(chain, process.K).to(device)
        # The row of each level in the tables of `fit`.
        self.row = torch.zeros(process.K + 1, dtype=torch.int64, device=device)
        self.row[list(chain[:-1])] = torch.arange(len(chain) - 1, device=device)
        self.fit = fit and Fit(*(table.to(device) for table in fit))
        self.image_fit = image_fit and Fit(*(table.to(device) for table in image_fit))
        self.estimates_images = not process.of_next_mean or image_fit is not None
        self.correction = self.fit if label == "calibrated" else None

    @property
    def prior_std(self) -> float:  # type: ignore[override]
        """Delta, or sigma_k of the chain's first level."""
        first = self.process.sigma[self.chain[0]].item()
        return first if self.delta is None else self.delta

    def coefficients(self, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """p, r and s at levels k (B,), see `GaussianProcess`: float64 (B, 1, H, W)."""
        j, log_alpha = self.next_level[k], self.process.blur.log_alpha
        p, r, s = self.process.step_coefficients(k, j, self.eta, log_alpha)
        return p.unsqueeze(1), r.unsqueeze(1), s.unsqueeze(1)

    def mean(self, u_k: Tensor, F: Tensor, k: Tensor) -> Tensor:
        """p z_k + y, at j = 0 the estimate of the image itself."""
        if self.process.of_next_mean and not self.correction:
            return u_k + F.float()
        p, r, _ = self.coefficients(k)
        return self._mean(self.correction, p, r, u_k, F, k)

    def estimate(self, u_k: Tensor, F: Tensor, k: Tensor) -> Tensor:
        """x_hat, the estimate of the image x, the best affine one where that was measured: (B, C,
        H, W). Needs `estimates_images`.
        """
        zero = torch.zeros(1, 1, 1, 1, dtype=torch.float64, device=u_k.device)
        return self._mean(self.image_fit, zero, zero + 1, u_k, F, k)

    def _mean(
        self, fit: Fit | None, p: Tensor, r: Tensor, u_k: Tensor, F: Tensor, k: Tensor
    ) -> Tensor:
        """p z_k plus the estimate of r x, by a fit or as the network says."""
        F, process = F.float(), self.process
        of_z, of_F = process.estimate_coefficients(k)
        if not process.of_next_mean:
            of_z, of_F = r * of_z, r * of_F
        if not fit:
            return mix(p + of_z, u_k, of_F, F, self.planes)
        a, b, c, _ = (table[self.row[k]] for table in fit)
        a, b = a[:, self.bins], b[:, self.bins]
        mean = mix(p + a + b * of_z, u_k, b * of_F, F, self.planes)
        padding = (0, u_k.shape[-1] - c.shape[-1], 0, u_k.shape[-2] - c.shape[-2])
        return mean + idct2(pad(c.float(), padding), self.planes)

    def noise(self, eps: Tensor, k: int) -> Tensor:
        """Eps filtered in the basis, which is orthonormal: there, too, it is standard normal."""
        if self.delta is not None:
            return self.delta * eps
        std = self.variance(torch.tensor([k], device=self.bins.device)).sqrt().float()
        return idct2(std * dct2(eps, self.planes), self.planes)

    def variance(self, k: Tensor) -> Tensor:
        """v of every coefficient at int64 levels k (B,): float64 (B, 1 or C, H, W)."""
        square = self.coefficients(k)[2] ** 2
        if self.delta is not None:
            return torch.full_like(square, self.delta**2)
        if self.fit:
            square = square + self.fit.error[self.row[k]][:, self.bins]
        return square

    def estimate_error(self, k: Tensor) -> Tensor:
        """Return the mean squared error of `estimate`, as it was measured: float64 (B, C, H, W)."""
        if self.image_fit is None:
            raise ValueError("the error of its estimates was not measured: --delta=calibrated")
        return self.image_fit.error[self.row[k]][:, self.bins]

    def bin_variances(self, k: Tensor) -> Tensor:
        """v in each bin where it is one number: float64 (B, R)."""
        v = self.variance(k.to(self.bins.device)).expand(-1, *self.bins.shape)
        return bin_sums(v, self.bins) / self.sizes.to(v.device)

    def pixel_variance(self, k: Tensor) -> Tensor:
        """Return one number per channel for a last step from levels k (B,): float64 (B, 1 or C, 1,
        1).

        The mean over coefficients of the measured error; else what sigma_k leaves unknown of x
        where nothing is blurred, as in DDPM (Ho et al., 2020, equation 13).
        """
        if not self.fit:
            return (self.process.sigma_of(k) / self.process.blur.alpha(k)[..., :1, :1]) ** 2
        of_planes = self.variance(k).mean((2, 3), keepdim=True)
        if self.planes is None:
            return of_planes
        return torch.einsum("pc,bpij->bcij", self.planes.to(of_planes) ** 2, of_planes)

    def checksum(self) -> int:
        """Return the CRC32 of eta and of the correction at the levels of the chain."""
        value = 0 if self.eta == 1 else zlib.crc32(repr(self.eta).encode())
        for table in self.fit or ():
            rows = table[self.row[list(self.chain[:-1])]].float().cpu()
            value = zlib.crc32(rows.numpy().tobytes(), value)
        return value


def isotropic(process: GaussianProcess, delta: float, chain: Chain | None = None) -> GaussianKernel:
    """Return the paper's kernel: N(u_k + f(u_k, k), delta^2 I), and delta for the prior's noise,
    too.
    """
    return GaussianKernel(process, f"{delta:g}", chain or process.chain, delta=delta)
