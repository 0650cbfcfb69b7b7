"""Spectra of images in the cosine basis: moments of each coefficient over images, and sums over
bins of frequencies.
"""

import math

import torch
from torch import Tensor

from model_code.dct import dct2


class DCTMoments:
    """Mean and variance of each DCT coefficient over images, which are added a batch at a time."""

    def __init__(self, num_channels: int, height: int, width: int) -> None:
        self.count = 0
        self.sum = torch.zeros(num_channels, height, width, dtype=torch.float64)
        self.squares = torch.zeros_like(self.sum)

    def add(self, images: Tensor) -> None:
        """Add images (B, C, H, W) on the CPU; B may be 0."""
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


def shells_of(height: int, width: int) -> Tensor:
    """Return a whole number for each frequency, equal where lambda is equal and in the same order:
    int64 (H, W).

    lambda / pi^2 = n^2 / H^2 + m^2 / W^2 without its denominator; of squares n^2 + m^2.
    """
    divisor = math.gcd(height, width)
    n = torch.arange(height)[:, None] * (width // divisor)
    m = torch.arange(width) * (height // divisor)
    return n**2 + m**2


def radii_of(height: int, width: int) -> Tensor:
    """Distance of each frequency from the constant, in steps of the longer axis: float64 (H, W)."""
    shorter = min(height, width) // math.gcd(height, width)
    return shells_of(height, width).double().sqrt() / shorter


def bin_sums(values: Tensor, bins: Tensor, num_bins: int = 0) -> Tensor:
    """Sums over the coefficients in each bin, int64 (H, W) or (C, H, W), of values (..., H, W) or
    (..., C, H, W): float64 (..., R). There are `num_bins`, or as many as `bins` has.
    """
    bins = bins.to(values.device)
    shape = (*values.shape[: -bins.dim()], num_bins or int(bins.max()) + 1)
    sums = torch.zeros(shape, dtype=torch.float64, device=values.device)
    return sums.index_add_(-1, bins.flatten(), values.double().flatten(-bins.dim()))
