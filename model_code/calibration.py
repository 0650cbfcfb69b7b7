"""Calibration: the best affine reverse kernels for a given network, between any two levels, from
one network call per level.

A step from k to j needs r x, see `GaussianProcess`. Among the kernels N(p z_k + a z_k + b q + c,
diag(v)), q being the network's own estimate of r x, the one nearest to q_s(z_j | z_k, x) in the
Kullback-Leibler divergence has the least squares regression of r x on (z_k, q, 1), and v = s^2 +
its mean squared residual (the argument of Bao et al., 2022, on optimal variances, with the mean
included, in the basis in which the process is diagonal). The moments of (z_k, h, x) at level k give
all pairs (k, j): h is what the network says of x, so that q = r h, or of a network that predicts
the next mean its output F, so that q = z_k + F.

a, b and v are the same in a bin of frequencies: those at about the same radius, and each blind one
on its own (see `frequency_bins`). Of colour images the basis is that of luminance and chrominance,
each with its own bins, since chrominance varies far less. What r multiplies is pooled over shells,
in which r is one number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model_code.dct import LUMINANCE_CHROMINANCE, dct2
from model_code.kernels import Fit, GaussianKernel
from model_code.process import Chain
from model_code.spectrum import bin_sums, radii_of, shells_of

if TYPE_CHECKING:
    from model_code.gaussian import GaussianProcess

SMALLEST_VARIANCE = 1e-8
"""Of a bin at j = 0, where only the error counts: training images may agree in a frequency."""
SMALLEST_SHARE = 1e-12
"""Of the variance that is to be explained: below it differences of sums in float64 are rounding."""
PRIOR_IMAGES = 1.0
"""Weight of the prior belief y = q, in images: with few images the regression shrinks to it."""
LARGEST_EXACT_RADIUS = 12
PAIRS = ((0, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 2))
OFFSET_FREQUENCIES = 16
"""c is 0 beyond so many frequencies on each axis: what all images have in common is coarse."""
EXACT_SIZE = 64
"""Up to this image size shells are exact; beyond, radii are rounded to 1/16."""


def frequency_bins(height: int, width: int, num_images: int, patch_size: int = 1) -> Tensor:
    """Return the bin of each frequency: int64 (H, W). Frequencies of one radius share a bin; each
    blind one has its own.

    Radii are rounded, but for low ones, where alpha varies fastest: the more images, the more of
    these are exact. Blind are frequencies that the network does not denoise: GroupNorm removes the
    means of its input's channels, which on patches of p x p pixels are means over every p-th row
    and column, nearly the frequencies at multiples of 2 H / p and 2 W / p.
    """
    radii = radii_of(height, width)
    exact = radii < min(LARGEST_EXACT_RADIUS, math.sqrt(num_images) / 2)
    shells = shells_of(height, width)
    bins = torch.where(exact, shells, shells.max() + radii.round().long())
    steps = 2 * torch.arange(patch_size // 2 + 1)
    rows, columns = ((steps * n // patch_size).clamp(max=n - 1).unique() for n in (height, width))
    blind = torch.cartesian_prod(rows, columns)
    bins[tuple(blind.T)] = bins.max() + 1 + torch.arange(len(blind))
    return torch.unique(bins, return_inverse=True)[1]  # a radius may have lost its only member


class Bins:
    """Bins of an image's coefficients, and shells, the parts of a bin in which alpha is one."""

    def __init__(self, bins: Tensor) -> None:
        """bins: int64 (C, H, W)."""
        C, H, W = bins.shape
        exact = max(H, W) <= EXACT_SIZE
        shells = shells_of(H, W) if exact else (16 * radii_of(H, W)).round().long()
        both = torch.stack([bins.flatten(), shells.expand(C, H, W).flatten()])
        pairs, inverse = torch.unique(both, dim=1, return_inverse=True)
        self.bins, self.shells, self.bin_of_shell = bins, inverse.view(C, H, W), pairs[0]
        ones = torch.ones(C, H, W)
        self.sizes, self.shell_sizes = bin_sums(ones, bins), bin_sums(ones, self.shells)

    def of_shells(self, sums: Tensor) -> Tensor:
        """Sums over shells (..., S) to sums over bins (..., R); those over bins stay."""
        if sums.shape[-1] == len(self.sizes):
            return sums
        of_bins = sums.new_zeros(*sums.shape[:-1], len(self.sizes))
        return of_bins.index_add_(-1, self.bin_of_shell, sums)


def lowest(coefficients: Tensor) -> Tensor:
    """Return the frequencies of (..., H, W) in which c may be other than 0: (..., h, w)."""
    return coefficients[..., :OFFSET_FREQUENCIES, :OFFSET_FREQUENCIES]


def moments(process: GaussianProcess, u0: Tensor, z: Tensor, F: Tensor, k: Tensor) -> Tensor:
    """Sums over a batch (B, C, H, W) of images, their states at k and the network's output there.

    Float64 (9, C, H, W): products of z, h and x in each coefficient, as `PAIRS`, then themselves.
    """
    planes = LUMINANCE_CHROMINANCE if process.num_channels == 3 else None
    images = (z, F.float(), process.from_images(u0))
    z, h, x = (dct2(image, planes).double() for image in images)
    if not process.of_next_mean:
        of_z, of_F = process.estimate_coefficients(k)
        h = of_z * z + of_F * h
    parts = torch.stack([z, h, x])
    products = [(parts[i] * parts[j]).sum(0) for i, j in PAIRS]
    return torch.cat([torch.stack(products), parts.sum(1)])


def level_state(
    process: GaussianProcess, groups: Bins, sums: Tensor, k: int, num_images: int
) -> dict[str, Tensor]:
    """Return the `moments` of level k over so many images, by bin and shell; groups:
    `measured_bins`.

    Second moments are centered where c takes care of the means. They stay in float64: residuals are
    differences of nearly equal sums.
    """
    products, means = sums.cpu().div(num_images).split([6, 3])
    means = lowest(means)
    for product, (i, j) in zip(products, PAIRS, strict=True):
        lowest(product).sub_(means[i] * means[j])
    z, h, x = means
    # r does not multiply the output of a network that predicts the next mean.
    quadratic = groups.bins if process.of_next_mean else groups.shells
    noise = z - lowest(process.blur.log_alpha[k].cpu()).exp() * x
    return {
        "bins": bin_sums(products[:3], quadratic),
        "shells": bin_sums(products[3:5], groups.shells),
        "means": torch.stack([noise, h]).float(),
        "power": bin_sums(products[5], groups.shells),
        "image_mean": x.float(),
    }


def calibration_state(
    process: GaussianProcess,
    groups: Bins,
    levels: Mapping[int, dict[str, Tensor]],
    num_images: int,
) -> dict[str, Tensor]:
    """Return what checkpoints hold, from the `level_state` of every level of the chain."""
    state = dict(levels[process.K])
    for name in ("bins", "shells", "means"):
        table = state[name].new_zeros(process.K + 1, *state[name].shape)
        table[list(levels)] = torch.stack([level[name] for level in levels.values()])
        state[name] = table
    if process.num_channels == 3:
        state["planes"] = LUMINANCE_CHROMINANCE
    bins = groups.bins.to(torch.int16)
    return state | {"bin_of_frequency": bins, "num_images": torch.tensor(num_images)}


def measured_bins(process: GaussianProcess, num_images: int) -> Bins:
    """Return those of a calibration from so many images; each plane has its own."""
    C, H, W = process.shape
    bins = frequency_bins(H, W, num_images, process.patch_size)
    return Bins(bins + (bins.max() + 1) * torch.arange(C)[:, None, None])


class Calibration:
    """Moments of (z_k, h, x) over training images at every level, and the kernels that follow."""

    def __init__(self, process: GaussianProcess, state: Mapping[str, Tensor]) -> None:
        """state: of `calibration_state`. Raises ValueError for other images or levels."""
        C, H, W = process.shape
        bins = state["bin_of_frequency"].long()
        measured = (len(state["bins"]) - 1, len(state["image_mean"]), *bins.shape[-2:])
        if measured != (process.K, C, H, W):
            other = "the calibration is of other levels or images"
            raise ValueError(f"{other}: (K, C, H, W) = {measured}, not {(process.K, C, H, W)}")
        self.process, self.state = process, state
        self.groups = groups = Bins(bins.expand(C, H, W))
        self.low_bins = lowest(groups.bins)
        log_alpha = process.blur.log_alpha.cpu().unsqueeze(1)
        every = log_alpha.expand(-1, C, H, W)
        self.shell_log_alpha = bin_sums(every, groups.shells) / groups.shell_sizes
        self.low_log_alpha = lowest(log_alpha)
        self.low_share = self._low_means(torch.ones(self.low_bins.shape))

    def fit(self, k: Tensor, j: Tensor, eta: float, *, identity: bool = False) -> Fit:
        """Regressions of y = r x on (z_k, q, 1) for pairs of int64 levels k > j (P,).

        With `identity` y is q, and the errors are those of the network's own estimate.
        """
        n, groups, state = int(self.state["num_images"]), self.groups, self.state
        of_next_mean = self.process.of_next_mean
        _, r, _ = self.process.step_coefficients(k, j, eta, self.shell_log_alpha)
        of_h = torch.ones(()) if of_next_mean else r
        of_z = float(of_next_mean)  # q = of_z z + of_h h
        zz, zh, hh = state["bins"][k].unbind(1)
        zx, hx = state["shells"][k].unbind(1)
        zz, zq, qq = map(groups.of_shells, (zz, of_h * zh, of_h**2 * hh))
        zq, qq = zq + of_z * zz, qq + of_z * (zz + 2 * zq)
        zy, hy, yy = map(groups.of_shells, (r * zx, of_h * r * hx, r**2 * state["power"]))
        qy = hy + of_z * zy
        a, b = torch.zeros_like(zz), torch.ones_like(zz)
        if not identity:
            # Ridge regression of what q leaves over.
            ridge, left_q, left_z = 1 + PRIOR_IMAGES / n, qy - qq, zy - zq
            determinant = (qq * zz * ridge**2 - zq**2).clamp(min=1e-300)
            # An output that is the same for all images says nothing that c does not.
            varies = qq > SMALLEST_SHARE * yy
            more_z = torch.where(varies, (qq * ridge * left_z - zq * left_q) / determinant, 0)
            more_q = torch.where(varies, (zz * ridge * left_q - zq * left_z) / determinant, 0)
            a, b = more_z, 1 + more_q
        squares = yy - 2 * (a * zy + b * qy) + a**2 * zz + 2 * a * b * zq + b**2 * qq
        errors = squares.clamp(min=0) / groups.sizes

        # c, of the lowest frequencies.
        noise, h = state["means"][k].double().unbind(1)
        x = state["image_mean"].double()
        z = self.low_log_alpha[k].exp() * x + noise
        _, r, _ = self.process.step_coefficients(k, j, eta, self.low_log_alpha)
        q = z + h if of_next_mean else r * h
        c = r * x - a[:, self.low_bins] * z - b[:, self.low_bins] * q
        squares = self._low_means(c.square())
        if identity:
            return Fit(a, b, c, errors + squares)
        # c is known up to errors / n: where it is not larger than that, it shrinks to 0 (James and
        # Stein, 1961).
        uncertain = errors / max(1, n - 1) * self.low_share
        share = (1 - uncertain / squares.clamp(min=1e-300)).clamp(0, 1)
        freedom = 2 / (n * groups.sizes)
        inflation = (1 + freedom) / (1 - freedom).clamp(min=0.5) + self.low_share / n
        errors = errors * inflation + share * uncertain
        return Fit(a, b, c * share[:, self.low_bins], errors)

    def costs(self, chain: Chain, eta: float) -> Tensor:
        """Return the expected term of the bound in nats for every step k -> j between levels of a
        chain: float64 (K + 1, K + 1).
        """
        groups, size = self.groups, self.process.K + 1
        costs = torch.full((size, size), math.inf, dtype=torch.float64)
        for place, level in enumerate(chain[:-1]):
            j = torch.tensor(chain[place + 1 :])
            k = torch.full_like(j, level)
            errors = self.fit(k, j, eta).error.clamp(min=SMALLEST_VARIANCE)
            _, _, s = self.process.step_coefficients(k, j, eta, self.shell_log_alpha)
            steps = groups.shell_sizes * (errors[:, groups.bin_of_shell] / s**2).log1p()
            density = groups.sizes * ((2 * math.pi * errors).log() + 1)
            costs[level, j] = 0.5 * torch.where(j == 0, density.sum(1), steps.sum(1))
        return costs

    def best_chain(self, chain: Chain, steps: int, eta: float) -> Chain:
        """Return the `steps` + 1 levels of a chain, both ends included, whose bound is expected to
        be lowest (Watson et al., 2021).
        """
        return shortest_path(self.costs(chain, eta), chain[0], steps)

    def kernel(self, kind: str, chain: Chain, eta: float) -> GaussianKernel:
        """Return the best kernel of every step of a chain, "calibrated", or "spectral": the best of
        those whose mean is the network's own.
        """
        k, j = torch.tensor(chain[:-1]), torch.tensor(chain[1:])
        fit = self.fit(k, j, eta, identity=kind == "spectral")
        fit.error[-1].clamp_(min=SMALLEST_VARIANCE)
        bins, planes = self.groups.bins, self.state.get("planes")
        image_fit = self.fit(k, torch.zeros_like(k), eta) if kind == "calibrated" else None
        return GaussianKernel(
            self.process, kind, chain, eta, fit=fit, image_fit=image_fit, bins=bins, planes=planes
        )

    def _low_means(self, values: Tensor) -> Tensor:
        """Sums over the lowest coefficients in a bin, by its size: (..., C, h, w) to (..., R)."""
        sums = bin_sums(values, self.low_bins, len(self.groups.sizes))
        return sums / self.groups.sizes


def shortest_path(costs: Tensor, start: int, steps: int) -> Chain:
    """Return the cheapest way from `start` down to 0 in exactly `steps` steps, at costs[k, j] each,
    by dynamic programming.
    """
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
