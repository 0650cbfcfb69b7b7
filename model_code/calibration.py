"""Calibration: the best affine reverse kernel for a given network, between any two levels, from one network call per level.

Among the kernels p(u_j | u_k) = N(a u_k + b f + c, diag(v)) in a cosine basis, the one nearest to q in the Kullback-Leibler
divergence has for (a, b, c) the least squares regression of A_j u_0 on (u_k, f, 1), and v = sigma^2 + mean squared residual; at
j = 0, where the target has no noise, the residual alone (the argument of Bao et al., 2022, on optimal variances, with the mean
included, in the basis in which heat is diagonal). A_j is diagonal there, so the moments of (u_k, f, u_0) give all pairs (k, j).

a, b and v are the same in a bin of frequencies: those at about the same radius, and each blind one on its own (see
`frequency_bins`). Of colour images the basis is that of luminance and chrominance, each with its own bins, since chrominance
varies far less. Moments with u_0 are pooled over shells, in which A_j is one number.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from model_code.dct import LUMINANCE_CHROMINANCE, Basis
from model_code.kernels import AffineKernel, Chain, arrivals
from model_code.spectrum import bin_sums, radii_of

SMALLEST_VARIANCE = 1e-8
"""Of a bin at j = 0, where only the error counts: a frequency in which all training images agree would have none."""
PRIOR_IMAGES = 1.0
"""Weight of the prior belief a = b = 1, in images: with few images the regression shrinks towards it."""
LARGEST_EXACT_RADIUS = 12
OFFSET_FREQUENCIES = 16
"""c is 0 beyond so many frequencies on each axis: what all images have in common is coarse."""
EXACT_SIZE = 64
"""Up to this image size shells are exact; beyond, radii are rounded to 1/16."""


def frequency_bins(height: int, width: int, num_images: int, patch_size: int = 1) -> torch.Tensor:
    """The bin of each frequency: int64 (H, W). Frequencies of one radius share a bin; each blind one has its own.

    Radii are rounded, but for low ones, where A_j varies fastest: the more images, the more of these are exact. Blind are
    frequencies that the network does not denoise: GroupNorm removes the means of its input's channels, which on patches of
    p x p pixels are means over every p-th row and column, nearly the frequencies at multiples of 2 H / p and 2 W / p.
    """
    radii = radii_of(height, width)
    exact = radii < min(LARGEST_EXACT_RADIUS, math.sqrt(num_images) / 2)
    bins = torch.where(exact, (radii**2).round(), LARGEST_EXACT_RADIUS**2 + radii.round()).long()
    blind = [sorted({min(2 * i * n // patch_size, n - 1) for i in range(patch_size // 2 + 1)}) for n in (height, width)]
    for n in blind[0]:
        for m in blind[1]:
            bins[n, m] = bins.max() + 1
    return torch.unique(bins, return_inverse=True)[1]  # a radius may have lost its only member


class Moments:
    """Sums over images from which `Calibration` is made, a row of numbers per level; rows of several batches add up."""

    def __init__(self, bins: torch.Tensor, planes: torch.Tensor | None) -> None:
        """bins: of each coefficient of a plane, int64 (C, H, W); planes: mixtures of channels, see `Basis`."""
        C, H, W = bins.shape
        radii = radii_of(H, W).expand(C, H, W)
        key = (radii**2).round() if max(H, W) <= EXACT_SIZE else (16 * radii).round()
        pairs, shells = torch.unique(torch.stack([bins.flatten(), key.flatten().long()]), dim=1, return_inverse=True)
        self.bins, self.shells, self.bin_of_shell = bins, shells.view(C, H, W), pairs[0]
        self.low = (min(H, OFFSET_FREQUENCIES), min(W, OFFSET_FREQUENCIES))
        self.planes, self.basis = planes, Basis(H, W, planes)

    @classmethod
    def of_images(cls, shape: tuple[int, int, int], num_images: int, patch_size: int) -> "Moments":
        """For so many images of `shape` (C, H, W), and a network on patches: each plane has its own bins."""
        C, H, W = shape
        bins = frequency_bins(H, W, num_images, patch_size)
        separate = bins + (bins.max() + 1) * torch.arange(C)[:, None, None]
        return cls(separate, LUMINANCE_CHROMINANCE if C == 3 else None)

    def row(self, u0: torch.Tensor, u_k: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
        """Sums over a batch of (B, C, H, W) images u_0, their states u_k and the network's output f there: float64 (S,)."""
        x, u, f = (self.basis.coefficients(image.float()).double() for image in (u0, u_k, f))
        of_bins = [bin_sums((p * q).sum(0), self.bins) for p, q in ((u, u), (u, f), (f, f))]
        of_shells = [bin_sums((p * q).sum(0), self.shells) for p, q in ((u, x), (f, x), (x, x))]
        means = [self.lowest(image.sum(0)).flatten() for image in (u, f, x)]
        return torch.cat([*of_bins, *of_shells, *means]).cpu()

    def calibrated(self, rows: torch.Tensor, num_images: int, decay: torch.Tensor) -> dict[str, torch.Tensor]:
        """The state of a `Calibration` from the rows (K + 1, S) of all levels; row 0 is not used. decay: exp(-lambda t_k),
        float64 (K + 1, H, W).

        Moments are centered, by frequency, where c takes care of the means. Second moments stay in float64: residuals are
        differences of nearly equal sums.
        """
        R, S = int(self.bins.max()) + 1, len(self.bin_of_shell)
        of_bins, of_shells, means = rows.split([3 * R, 3 * S, rows.shape[1] - 3 * R - 3 * S], dim=1)
        of_bins, of_shells = of_bins.unflatten(1, (3, R)) / num_images, of_shells.unflatten(1, (3, S)) / num_images
        u, f, x = (means.unflatten(1, (3, len(self.bins), *self.low)) / num_images).unbind(1)
        centers = [self.padded(p * q) for p, q in ((u, u), (u, f), (f, f), (u, x), (f, x), (x, x))]
        of_bins = of_bins - torch.stack([bin_sums(center, self.bins) for center in centers[:3]], 1)
        of_shells = of_shells - torch.stack([bin_sums(center, self.shells) for center in centers[3:]], 1)
        noise = u - self.lowest(decay)[:, None] * x  # the mean of u_k - A_k u_0, of the noise that was drawn
        return {
            "bin_of_frequency": self.bins.to(torch.int16),
            **({} if self.planes is None else {"planes": self.planes}),
            "bins": of_bins,
            "shells": of_shells[:, :2].contiguous(),
            "power": of_shells[-1, 2].clone(),
            "means": torch.stack([noise, f], 1).half(),
            "image_mean": x[-1].float().clone(),
            "num_images": torch.tensor(num_images),
        }

    def lowest(self, coefficients: torch.Tensor) -> torch.Tensor:
        """The frequencies of (..., H, W) in which c may be other than 0: (..., h, w)."""
        return coefficients[..., : self.low[0], : self.low[1]]

    def padded(self, lowest: torch.Tensor) -> torch.Tensor:
        """(..., h, w) with zeros at the other frequencies: (..., H, W)."""
        full = torch.zeros(*lowest.shape[:-2], *self.bins.shape[1:], dtype=lowest.dtype)
        full[..., : self.low[0], : self.low[1]] = lowest
        return full


@dataclass(frozen=True)
class Fit:
    """Regressions for P pairs of levels."""

    a: torch.Tensor
    """float64 (P, R)."""
    b: torch.Tensor
    """float64 (P, R)."""
    c: torch.Tensor
    """float64 (P, C, h, w), of the lowest frequencies."""
    errors: torch.Tensor
    """Expected squared error of one coefficient, float64 (P, R)."""


class Calibration:
    """Moments of (u_k, f, u_0) over training images at every level, and the kernels that follow from them."""

    def __init__(self, state: Mapping[str, torch.Tensor], decay: torch.Tensor, num_channels: int, sigma: float) -> None:
        """state: of `Moments.calibrated`; decay: exp(-lambda t_k), float64 (K + 1, H, W); sigma: the noise of all levels.

        Raises ValueError for a state of other images or levels.
        """
        bins = state["bin_of_frequency"].long()
        found = len(state["bins"]) - 1, state["image_mean"].shape[0], *bins.shape[-2:]
        expected = len(decay) - 1, num_channels, *decay.shape[1:]
        if found != expected:
            raise ValueError(f"the calibration is of other levels or images: (K, C, H, W) = {found}, not {expected}")
        bins = bins.expand(num_channels, *bins.shape[-2:])  # older states have bins (H, W) for all channels together
        self.moments = moments = Moments(bins, state.get("planes"))
        self.state, self.sigma, self.K = state, sigma, len(decay) - 1
        self.num_images = int(state["num_images"])
        self.low_decay = moments.lowest(decay)
        sizes = bin_sums(torch.ones(moments.shells.shape), moments.shells)
        self.shell_decay = bin_sums(decay.unsqueeze(1).expand(-1, num_channels, -1, -1), moments.shells) / sizes
        self.sizes = bin_sums(torch.ones(bins.shape), bins)
        self.low_share = bin_sums(moments.padded(torch.ones(num_channels, *moments.low)), bins) / self.sizes

    def fit(self, k: torch.Tensor, j: torch.Tensor, identity: bool = False) -> Fit:
        """Regressions of A_j u_0 on (u_k, f, 1) for pairs of int64 levels k > j (P,); with `identity` a = b = 1 and c = 0."""
        n = self.num_images
        uu, uf, ff = self.state["bins"][k].unbind(1)
        d = self.shell_decay[j]
        uy, fy = (self._to_bins(d * self.state["shells"][k, i]) for i in (0, 1))
        yy = self._to_bins(d**2 * self.state["power"])
        a = b = torch.ones_like(uu)
        if not identity:
            # Ridge regression of what the prediction p = u + f leaves over, on p and u, which are less alike than u and f.
            pp, up, ridge = uu + 2 * uf + ff, uu + uf, 1 + PRIOR_IMAGES / n
            rp, ru = uy + fy - pp, uy - up
            determinant = (pp * uu * ridge**2 - up**2).clamp(min=1e-300)
            of_p, of_u = (uu * ridge * rp - up * ru) / determinant, (pp * ridge * ru - up * rp) / determinant
            a, b = 1 + of_p + of_u, 1 + of_p
        errors = (yy - 2 * (a * uy + b * fy) + a**2 * uu + 2 * a * b * uf + b**2 * ff).clamp(min=0) / self.sizes
        noise, f = self.state["means"][k].double().unbind(1)
        x, bins = self.state["image_mean"].double(), self.moments.lowest(self.moments.bins)
        d_k, d_j, a_low, b_low = self.low_decay[k].unsqueeze(1), self.low_decay[j].unsqueeze(1), a[:, bins], b[:, bins]
        c = d_j * x - a_low * (d_k * x + noise) - b_low * f
        squares = bin_sums(self.moments.padded(c.square()), self.moments.bins) / self.sizes
        if identity:
            return Fit(a, b, torch.zeros_like(c), errors + squares)
        # c is known up to errors / n: where it is not larger than that, it shrinks to 0 (James and Stein, 1961).
        uncertain = errors / max(1, n - 1) * self.low_share
        keep = (1 - uncertain / squares.clamp(min=1e-300)).clamp(0, 1)
        freedom = 2 / (n * self.sizes)
        errors = errors * (1 + freedom) / (1 - freedom).clamp(min=0.5) + keep * uncertain + errors * self.low_share / n
        return Fit(a, b, c * keep[:, bins], errors)

    def costs(self, chain: Chain) -> torch.Tensor:
        """The expected term of the bound in nats for every step k -> j between levels of a chain: float64 (K + 1, K + 1)."""
        costs = torch.full((self.K + 1, self.K + 1), math.inf, dtype=torch.float64)
        for place, level in enumerate(chain[:-1]):
            j = torch.tensor(chain[place + 1 :])
            errors = self.fit(torch.full_like(j, level), j).errors.clamp(min=SMALLEST_VARIANCE)
            terms = torch.where((j == 0)[:, None], (2 * math.pi * errors).log() + 1, (1 + errors / self.sigma**2).log())
            costs[level, j] = 0.5 * (self.sizes * terms).sum(1)
        return costs

    def best_chain(self, chain: Chain, steps: int) -> Chain:
        """The `steps` + 1 levels of a chain, both ends included, whose bound is expected to be lowest (Watson et al., 2021)."""
        return shortest_path(self.costs(chain), chain[0], steps)

    def kernel(self, label: str, chain: Chain, identity: bool = False) -> AffineKernel:
        """The best kernel of every step of a chain; with `identity` the best among those whose mean is the prediction."""
        k = torch.tensor(chain[:-1])
        j = arrivals(chain, self.K)
        fit = self.fit(k, j[k], identity)
        last = (j[k] == 0)[:, None]
        rows = (fit.a, fit.b, fit.c, torch.where(last, fit.errors.clamp(min=SMALLEST_VARIANCE), fit.errors + self.sigma**2))
        a, b, c, variance = (row.new_zeros(self.K + 1, *row.shape[1:]).index_copy_(0, k, row) for row in rows)
        gains = None if identity else (a, b, c)
        return AffineKernel(label, chain, self.moments.basis, self.moments.bins, variance, self.sigma, gains)

    def _to_bins(self, of_shells: torch.Tensor) -> torch.Tensor:
        sums = of_shells.new_zeros(*of_shells.shape[:-1], len(self.sizes))
        return sums.index_add_(-1, self.moments.bin_of_shell, of_shells)


def spectral_kernel(errors: torch.Tensor, chain: Chain, shape: tuple[int, int, int], sigma: float) -> AffineKernel:
    """The kernel of checkpoints in which only the mean's squared errors by level and radius (K + 1, radii) were measured."""
    variance = errors.double() + sigma**2
    variance[chain[-2]] = errors[chain[-2]].double().clamp(min=SMALLEST_VARIANCE)
    bins = radii_of(*shape[1:]).round().long().expand(shape)
    return AffineKernel("spectral", chain, Basis(*shape[1:]), bins, variance, sigma)


def shortest_path(costs: torch.Tensor, start: int, steps: int) -> Chain:
    """The cheapest way from `start` down to 0 in exactly `steps` steps, at costs[k, j] each, by dynamic programming."""
    to_zero = torch.full((len(costs),), math.inf, dtype=costs.dtype)
    to_zero[0] = 0
    choices = []
    for _ in range(steps):
        to_zero, choice = (costs + to_zero).min(1)
        choices.append(choice)
    path = [start]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return tuple(path)
