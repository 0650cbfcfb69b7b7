"""Blur schedules that are fitted to a data set's spectrum, and what any schedule does to it.

`power` (H, W) is the variance of each DCT coefficient over images about their mean, summed over
channels; that of the constant, which no blur changes, does not count. sigma_B is float64 (K + 1,),
0 first; d_k = exp(-lambda sigma_B[k]^2 / 2).
"""

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from model_code.dct import eigenvalues

DIGITS = 8
"""Matched levels are rounded to so many: the order in which several processes add up the spectrum
decides further ones.
"""
TOLERANCE = 1e-4
SMALLEST_POWER = 1e-6
"""Of images in [0, 1]: less is rounding error, as a grey level in one of their pixels is 1.5e-5."""


def removed_variance(sigma_B: Tensor, power: Tensor) -> Tensor:
    """R_k = sum over frequencies of (d_{k-1} - d_k)^2 P for k = 1..K: float64 (K,)."""
    rates = eigenvalues(*power.shape)
    decays = ((-rates * sigma**2 / 2).exp() for sigma in sigma_B.double())  # all at once are GB
    return torch.stack([((d - after) ** 2 * power).sum() for d, after in pairwise(decays)])


def matched_schedule(power: Tensor, K: int, sigma_min: float, sigma_max: float) -> Tensor:
    """sigma_B with R_k equal for k = 2..K between fixed ends sigma_B[1] = sigma_min and sigma_B[K]
    = sigma_max > sigma_min.

    sqrt(R_k) is the length of a chord of the curve that the images' standard deviations follow as
    they blur. Levels are moved to equal parts of the polygon's length until all chords are equal
    (de Boor's equidistribution). The spectrum 1 / radius^2 gives even spacing in log, a white one
    even spacing in 1 / sigma_B, both where neither pixels nor the image's size show.

    Raises ValueError for a spectrum of which nothing is removed, or for which no such levels are
    found.
    """
    levels = torch.linspace(math.log(sigma_min), math.log(sigma_max), K, dtype=torch.float64)
    if K < 3:
        return _rounded(levels, sigma_min, sigma_max)
    if not power.sum() - power[0, 0] > SMALLEST_POWER:
        alike = "they are all alike but for their brightness"
        raise ValueError(f"blur removes nothing from these images: {alike}")
    parts = torch.linspace(0, 1, K, dtype=torch.float64)
    for _ in range(1000):
        chords = removed_variance(levels.exp(), power).sqrt()
        if chords.max() <= (1 + TOLERANCE) * chords.min():
            return _rounded(levels, sigma_min, sigma_max)
        length = torch.cat([torch.zeros(1), chords.cumsum(0)]) / chords.sum()
        inner = np.interp(parts[1:-1], length, levels)
        levels[1:-1] = torch.from_numpy(inner)
    ends = f"from {sigma_min:g} to {sigma_max:g} pixels"
    raise ValueError(f"no {K} blur levels {ends} remove equal parts of the images' variance")


def _rounded(levels: Tensor, sigma_min: float, sigma_max: float) -> Tensor:
    """sigma_B from the logarithms of levels 1..K, with ends as given."""
    middle = [float(f"{sigma:.{DIGITS}g}") for sigma in levels[1:-1].exp().tolist()]
    ends = [sigma_min] if len(levels) == 1 else [sigma_min, *middle, sigma_max]
    return torch.tensor([0.0, *ends], dtype=torch.float64)
