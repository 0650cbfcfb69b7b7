"""Spectra of images in the cosine basis: moments of each coefficient over images, and averages over
radii and octaves.
"""

import math

import torch
from torch import Tensor

from model_code.dct import dct2

LOG_BINS = 48


class DCTMoments:
    """Mean and variance of each DCT coefficient over images, which are added a batch at a time."""

    def __init__(self, num_channels: int, height: int, width: int) -> None:
        self.count = 0
        self.sum = torch.zeros(num_channels, height, width, dtype=torch.float64)
        self.squares = torch.zeros_like(self.sum)

    def add(self, images: Tensor) -> None:
        """Images (B, C, H, W) on the CPU; B may be 0."""
        coefficients = dct2(images.float()).double()
        self.count += len(images)
        self.sum += coefficients.sum(0)
        self.squares += coefficients.square().sum(0)

    @property
    def mean(self) -> Tensor:
        """float64 (C, H, W)."""
        return self.sum / self.count

    @property
    def variance(self) -> Tensor:
        """About the mean, unbiased: float64 (C, H, W). Needs two images."""
        return (self.squares - self.sum**2 / self.count).clamp(min=0) / (self.count - 1)


def radii_of(height: int, width: int) -> Tensor:
    """Distance of each frequency from the constant, in steps of the longer axis: float64 (H, W)."""
    longer = max(height, width)
    n = torch.arange(height, dtype=torch.float64)[:, None] * longer / height
    m = torch.arange(width, dtype=torch.float64) * longer / width
    return (n**2 + m**2).sqrt()


def bin_sums(values: Tensor, bins: Tensor, num_bins: int = 0) -> Tensor:
    """Sums over the coefficients in each bin, int64 (H, W) or (C, H, W), of values (..., H, W) or
    (..., C, H, W): float64 (..., R). There are `num_bins`, or as many as `bins` has.
    """
    bins = bins.to(values.device)
    shape = (*values.shape[: -bins.dim()], num_bins or int(bins.max()) + 1)
    sums = torch.zeros(shape, dtype=torch.float64, device=values.device)
    return sums.index_add_(-1, bins.flatten(), values.double().flatten(-bins.dim()))


def bin_means(values: Tensor, bins: Tensor) -> Tensor:
    """Averages over the frequencies in each bin, none of which is empty: (..., H, W) to float64
    (..., R).
    """
    return bin_sums(values, bins) / bin_sums(
        torch.ones(values.shape[-2:], device=values.device), bins
    )


def radial_bins(height: int, width: int) -> Tensor:
    """Bins for a radially averaged spectrum: 0 the constant, then 48 spaced evenly in log, or one a
    radius: int64 (H, W).

    Radii are rounded where there are fewer than 48. Bins that would be empty are left out.
    """
    radii = radii_of(height, width)
    largest = radii.max().item()
    if largest < LOG_BINS:
        return radii.round().long().unique(return_inverse=True)[1]
    place = radii.clamp(min=1).log() / math.log(largest) * LOG_BINS
    bins = torch.where(radii == 0, 0, 1 + place.long().clamp(max=LOG_BINS - 1))
    return bins.unique(return_inverse=True)[1]


def octaves(height: int, width: int) -> Tensor:
    """The octave of each frequency: int64 (H, W). i has wavelengths of 2^(i + 1) up to 2^(i + 2)
    pixels of the longer axis, 0 also the shorter ones of diagonals; the constant comes last.
    """
    longer, radii = max(height, width), radii_of(height, width)
    index = (longer / radii.clamp(min=1)).log2().floor().clamp(min=0).long()
    return torch.where(radii == 0, index.max() + 1, index)


def slope(power: Tensor) -> float:
    """The exponent a of a spectrum ~ radius^a, power (H, W): least squares in log over
    `radial_bins` up to Nyquist's radius.

    Bins without power are left out.
    """
    H, W = power.shape
    bins, radii = radial_bins(H, W), radii_of(H, W).clamp(min=0.5)
    x, y = bin_means(radii.log(), bins), bin_means(power, bins).log()
    used = (x >= 0) & (x < math.log(max(H, W))) & y.isfinite()
    x, y = x[used] - x[used].mean(), y[used]
    return ((x * y).sum() / x.square().sum()).item()
