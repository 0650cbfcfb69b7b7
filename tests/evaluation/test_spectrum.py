"""Spectra of samples: against SciPy, closed forms of white and 1/f^2 fields, and the spread over
repetitions.
"""

import numpy as np
import pytest
import scipy.fft
import torch

from model_code.spectrum import radii_of
from scripts.evaluation.pixels import (
    Y_CB_CR,
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
    """Variances by SciPy's DCT and NumPy's `var`, of colour in the planes of JPEG too."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, channels, 6, 8), dtype=np.uint8)
    bins = [radial_bins(6, 8), octaves(6, 8)]
    found = powers(images, bins, CPU).mean(0)
    coefficients = scipy.fft.dctn(images / 255, axes=(2, 3), norm="ortho")
    variance = coefficients.var(0, ddof=1)
    planes = [variance.sum(0)]
    if channels == 3:
        mixed = np.einsum("pc,bchw->bphw", Y_CB_CR, coefficients).var(0, ddof=1)
        planes += [*variance, mixed[0], mixed[1] + mixed[2]]
    for plane, expected in zip(found, planes, strict=True):
        sums = [
            expected[each.numpy() == i].sum() for each in bins for i in range(int(each.max()) + 1)
        ]
        np.testing.assert_allclose(plane, sums, rtol=1e-5)


def test_white_and_pink_fields() -> None:
    """The log ratio of 1/f^2 to white is known in each octave, so is the distance; errors are as
    large as what is off.
    """
    size, scale = 16, 0.05
    radii = radii_of(size, size).numpy()
    white, pink = np.full((size, size), scale), 2 * scale / np.maximum(radii, 1)
    fine, coarse = radial_bins(size, size), octaves(size, size)
    rng = np.random.default_rng(1)
    ours, theirs = (
        powers(to_uint8(field(rng, 1500, std)), [fine, coarse], CPU) for std in (pink, white)
    )
    found = compare(ours, theirs, int(fine.max()) + 1, seed=0)

    def mean(std: np.ndarray, bins: torch.Tensor) -> np.ndarray:
        return np.bincount(bins.flatten(), std.ravel() ** 2) / np.bincount(bins.flatten())

    quantized = 1 / 12 / 255**2
    ratio = (pink**2 + quantized, white**2 + quantized)
    expected = 10 * np.log10(mean(np.sqrt(ratio[0]), coarse) / mean(np.sqrt(ratio[1]), coarse))
    value, error = found[:, 0, 2:]
    assert abs((value - expected) / error).max() < 4
    assert abs(value - expected).max() < 0.5
    decibels = 10 * np.log10(mean(np.sqrt(ratio[0]), fine) / mean(np.sqrt(ratio[1]), fine))[1:]
    assert found[0, 0, 0] == pytest.approx(np.sqrt((decibels**2).mean()), abs=0.1)
    assert found[0, 0, 1] == pytest.approx(ratio[0].sum() / ratio[1].sum(), rel=0.03)


def test_errors_are_the_spread_over_repetitions() -> None:
    """Of total ratio and octaves, for images that vary together in all coefficients, where counting
    pixels would be wrong.
    """
    rng, size = np.random.default_rng(2), 8
    values, errors = [], []
    for _ in range(60):
        sets = []
        for count in (120, 50):
            contrast = np.exp(0.4 * rng.standard_normal((count, 1, 1, 1)))
            sets.append(
                powers(
                    to_uint8(
                        0.5 + contrast * (field(rng, count, np.full((size, size), 0.06)) - 0.5)
                    ),
                    BINS,
                    CPU,
                )
            )
        found = compare(sets[0], sets[1], RADIAL, seed=0)
        values.append(found[0, 0, 1:])
        errors.append(found[1, 0, 1:])
    spread = np.std(values, axis=0, ddof=1)
    np.testing.assert_allclose(np.mean(errors, axis=0), spread, rtol=0.35)
    assert np.mean(values, axis=0)[0] == pytest.approx(1, abs=0.05)


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
    assert np.isfinite(compare(powers(constant, BINS, CPU), ours[:, :1], RADIAL, 0)).all(), (
        "no variance, no NaN"
    )
    assert deviation_powers(torch.ones(1, 1, 8, 8), BINS)[0, 0, 0] == pytest.approx(64)


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
