"""Spectra of samples: against SciPy, closed forms of white and 1/f^2 fields, and the spread over
repetitions.
"""

import numpy as np
import pytest
import scipy.fft
import torch

from model_code.spectrum import radii_of
from scripts.evaluation.pixels import (
    bin_means,
    compare,
    deviation_powers,
    octaves,
    powers,
    radial_bins,
)

CPU = torch.device("cpu")
BINS = [radial_bins(8, 8), octaves(8, 8)]
RADIAL = int(BINS[0].max()) + 1


def field(rng: np.random.Generator, count: int, std: np.ndarray, channels: int = 1) -> np.ndarray:
    """Images (N, C, H, W) whose DCT coefficients are independent, of standard deviations (H, W),
    about a grey 0.5.
    """
    coefficients = rng.standard_normal((count, channels, *std.shape)) * std
    return 0.5 + scipy.fft.idctn(coefficients, axes=(2, 3), norm="ortho")


def to_uint8(images: np.ndarray) -> np.ndarray:
    return (images.clip(0, 1) * 255).round().astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_powers_are_scipys(channels: int) -> None:
    """Variances by SciPy's DCT and NumPy's `var`."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, channels, 6, 8), dtype=np.uint8)
    bins = [radial_bins(6, 8), octaves(6, 8)]
    found = powers(images, bins, CPU).mean(0)
    coefficients = scipy.fft.dctn(images / 255, axes=(2, 3), norm="ortho")
    variance = coefficients.var(0, ddof=1).sum(0).ravel()
    sums = [np.bincount(each.flatten(), variance) for each in bins]
    np.testing.assert_allclose(found, np.concatenate(sums), rtol=1e-5)


def test_values_of_a_comparison() -> None:
    """Four times the variance in two radial bins, the constant's and in the finest octave."""
    theirs = 1 + np.random.default_rng(1).random((50, RADIAL + int(BINS[1].max()) + 1))
    factor = np.ones(theirs.shape[1])
    factor[[0, 1, 2, RADIAL]] = 4
    distance, ratio, *decibels = compare(factor * theirs, theirs, RADIAL, seed=0)[0]
    four, means = 10 * np.log10(4), theirs[:, RADIAL:].mean(0)
    assert distance == pytest.approx(four * np.sqrt(2 / (RADIAL - 1)))
    assert ratio == pytest.approx(1 + 3 * means[0] / means.sum())
    assert decibels == pytest.approx([four, *[0] * int(BINS[1].max())])


def test_errors_are_the_spread_over_repetitions() -> None:
    """Of total ratio and octaves, for images that vary together in all coefficients, where counting
    pixels would be wrong.
    """
    rng, std = np.random.default_rng(2), np.full((8, 8), 0.06)

    def drawn(count: int) -> np.ndarray:
        contrast = np.exp(0.4 * rng.standard_normal((count, 1, 1, 1)))
        return powers(to_uint8(0.5 + contrast * (field(rng, count, std) - 0.5)), BINS, CPU)

    found = np.stack([compare(drawn(120), drawn(50), RADIAL, seed=0) for _ in range(60)])
    values, errors = found[:, 0, 1:], found[:, 1, 1:]
    np.testing.assert_allclose(errors.mean(0), values.std(0, ddof=1), rtol=0.35)
    assert values[:, 0].mean() == pytest.approx(1, abs=0.05)


def test_a_function_of_the_seed_and_of_no_block(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    images = to_uint8(field(rng, 40, np.full((8, 8), 0.1), channels=3))
    ours, theirs = powers(images[:20], BINS, CPU), powers(images[20:], BINS, CPU)
    first, again, other = (compare(ours, theirs, RADIAL, seed) for seed in (4, 4, 5))
    assert np.array_equal(first, again)
    assert np.array_equal(first[0], other[0])
    assert not np.array_equal(first[1], other[1])
    monkeypatch.setattr("scripts.evaluation.pixels.BLOCK_BYTES", 1)
    np.testing.assert_allclose(powers(images[:20], BINS, CPU), ours, rtol=1e-6)
    constant = np.full((5, 1, 8, 8), 9, np.uint8)
    assert np.isfinite(compare(powers(constant, BINS, CPU), ours, RADIAL, 0)).all(), (
        "no variance, no NaN"
    )
    assert deviation_powers(torch.ones(1, 1, 8, 8), BINS)[0, 0] == pytest.approx(64)


def test_radial_bins_are_even_in_log_or_one_a_radius() -> None:
    small = radial_bins(16, 16)
    torch.testing.assert_close(small, radii_of(16, 16).round().long())
    bins, radii = radial_bins(256, 256), radii_of(256, 256)
    assert 30 < bins.max() <= 48
    assert (bins == 0).sum() == 1
    widths = [
        float(radii[bins == i].max() / radii[bins == i].min())
        for i in range(1, int(bins.max()) + 1)
    ]
    assert max(widths) <= radii.max() ** (1 / 48) * (1 + 1e-9)
    assert bin_means(radii, bins).diff().min() > 0


def test_octaves_are_named_by_wavelengths() -> None:
    index, radii = octaves(32, 48), radii_of(32, 48)
    assert index.flatten()[0] == index.max()
    assert index[0, 1] == 5, "96 pixels are in 64..128"
    for i in range(1, 6):
        wavelengths = 2 * 48 / radii[index == i]
        assert wavelengths.min() >= 2 ** (i + 1)
        assert wavelengths.max() < 2 ** (i + 2)
    assert 2 * 48 / radii[index == 0].min() < 4
