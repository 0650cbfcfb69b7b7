"""Moments of DCT coefficients against NumPy and SciPy; averages over radii and octaves of fields
whose spectra are known.
"""

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn

from model_code.spectrum import DCTMoments, bin_means, octaves, radial_bins, radii_of, slope


def field(exponent: float, count: int, size: int) -> torch.Tensor:
    """Gaussian images (count, 1, size, size) whose power falls as radius^exponent, and is 0 for the
    constant.
    """
    radii = radii_of(size, size).numpy()
    amplitude = np.where(radii > 0, np.maximum(radii, 1) ** (exponent / 2), 0)
    noise = np.random.default_rng(0).standard_normal((count, 1, size, size))
    return torch.from_numpy(idctn(noise * amplitude, axes=(2, 3), norm="ortho"))


def test_moments_of_batches_are_those_of_all_images() -> None:
    images = torch.from_numpy(np.random.default_rng(0).random((50, 3, 6, 10)))
    one = DCTMoments(3, 6, 10)
    for batch in (*images.split(7), images[:0]):
        one.add(batch)
    coefficients = dctn(images.numpy(), axes=(2, 3), norm="ortho")
    assert one.count == 50
    np.testing.assert_allclose(one.mean, coefficients.mean(0), atol=1e-5)
    np.testing.assert_allclose(one.variance, coefficients.var(0, ddof=1), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("size", [28, 64, 256])
@pytest.mark.parametrize("exponent", [0.0, -2.0, -3.0])
def test_slope_of_a_field(exponent: float, size: int) -> None:
    moments = DCTMoments(1, size, size)
    moments.add(field(exponent, 100, size))
    assert slope(moments.variance[0]) == pytest.approx(exponent, abs=0.05)


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
