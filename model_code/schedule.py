"""Blur schedules that are fitted to a data set's spectrum, and what any schedule does to it.

`power` (H, W) is the variance of each DCT coefficient over images about their mean, summed over channels; that of the constant,
which no blur changes, does not count. sigma_B is float64 (K + 1,), 0 first; d_k = exp(-lambda sigma_B[k]^2 / 2).
"""

import math

import torch

from model_code.dct import eigenvalues

DIGITS = 8
"""Matched levels are rounded to so many: the order in which several processes add up the spectrum decides further ones."""
TOLERANCE = 1e-4


def grouped(power: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """lambda of all frequencies but the constant, ascending and each once, and the power at each: float64 (G,), (G,)."""
    rates, place = eigenvalues(*power.shape).flatten().unique(return_inverse=True)
    sums = torch.zeros_like(rates).index_add_(0, place, power.double().flatten())
    return rates[1:], sums[1:]


def removed_variance(sigma_B: torch.Tensor, power: torch.Tensor) -> torch.Tensor:
    """R_k = sum over frequencies of (d_{k-1} - d_k)^2 P for k = 1..K: float64 (K,)."""
    return _removed(sigma_B.double(), *grouped(power))


def kept_variance(sigma_B: torch.Tensor, power: torch.Tensor) -> torch.Tensor:
    """The share of the variance that is left at levels sigma_B (L,), sum of d^2 P over sum of P: float64 (L,)."""
    rates, power = grouped(power)
    return torch.stack([(torch.exp(-rates * sigma**2) * power).sum() for sigma in sigma_B.double()]) / power.sum()


def _removed(sigma_B: torch.Tensor, rates: torch.Tensor, power: torch.Tensor) -> torch.Tensor:
    """As `removed_variance`, one level at a time: all at once would be gigabytes."""
    decays = (torch.exp(-rates * sigma**2 / 2) for sigma in sigma_B)
    before, removed = next(decays), []
    for after in decays:
        removed.append(((before - after).square() * power).sum())
        before = after
    return torch.stack(removed)


def matched_schedule(power: torch.Tensor, K: int, sigma_min: float, sigma_max: float) -> torch.Tensor:
    """sigma_B with R_k equal for k = 2..K between fixed ends sigma_B[1] = sigma_min and sigma_B[K] = sigma_max > sigma_min.

    sqrt(R_k) is the length of a chord of the curve that the images' standard deviations follow as they blur. Levels are moved
    to equal parts of the polygon's length until all chords are equal (de Boor's equidistribution). The spectrum 1 / radius^2
    gives even spacing in log, a white one even spacing in 1 / sigma_B, both where neither pixels nor the image's size show.

    Raises ValueError for a spectrum of which nothing is removed, or for which no such levels are found.
    """
    rates, power = grouped(power)
    levels = torch.linspace(math.log(sigma_min), math.log(sigma_max), K, dtype=torch.float64)
    if K < 3:
        return _rounded(levels, sigma_min, sigma_max)
    parts = torch.linspace(0, 1, K, dtype=torch.float64)
    for _ in range(1000):
        chords = _removed(levels.exp(), rates, power).sqrt()
        if not chords.sum() > 0:
            raise ValueError("blur removes nothing from these images: they are all alike but for their brightness")
        if chords.max() <= (1 + TOLERANCE) * chords.min():
            return _rounded(levels, sigma_min, sigma_max)
        length = torch.cat([torch.zeros(1), chords.cumsum(0)]) / chords.sum()
        # Linear interpolation of the level as a function of length.
        right = torch.searchsorted(length, parts[1:-1]).clamp(1, K - 1)
        share = (parts[1:-1] - length[right - 1]) / (length[right] - length[right - 1]).clamp(min=1e-300)
        levels[1:-1] = levels[right - 1] + share.clamp(0, 1) * (levels[right] - levels[right - 1])
    raise ValueError(
        f"no {K} blur levels from {sigma_min:g} to {sigma_max:g} pixels remove equal parts of the images' variance"
    )


def _rounded(levels: torch.Tensor, sigma_min: float, sigma_max: float) -> torch.Tensor:
    """sigma_B from the logarithms of levels 1..K, with ends as given."""
    middle = [float(f"{sigma:.{DIGITS}g}") for sigma in levels[1:-1].exp().tolist()]
    ends = [sigma_min] if len(levels) == 1 else [sigma_min, *middle, sigma_max]
    return torch.tensor([0.0, *ends], dtype=torch.float64)
