"""The DCT and the blur against SciPy."""

import numpy as np
import pytest
import scipy.fft
import torch
from hypothesis import given
from hypothesis import strategies as st

from model_code.blur import DCTBlur, blur_schedule
from model_code.dct import dct2, idct2

sizes = st.integers(1, 24)
seeds = st.integers(0, 2**32 - 1)


def random_images(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(shape))


@given(sizes, sizes, seeds)
def test_dct_is_scipys(height: int, width: int, seed: int) -> None:
    u = random_images(seed, 2, 3, height, width)
    u_hat = dct2(u)
    np.testing.assert_allclose(
        u_hat, scipy.fft.dctn(u.numpy(), axes=(2, 3), norm="ortho"), atol=1e-10
    )
    np.testing.assert_allclose(idct2(u_hat), u, atol=1e-10)


def scipy_blur(u: np.ndarray, sigma_B: float) -> np.ndarray:
    """A_k u in float64, straight from the definition."""
    height, width = u.shape[-2:]
    n, m = np.arange(height)[:, None], np.arange(width)
    eigenvalues = np.pi**2 * (n**2 / height**2 + m**2 / width**2)
    u_hat = scipy.fft.dctn(u, axes=(-2, -1), norm="ortho")
    return scipy.fft.idctn(
        np.exp(-eigenvalues * sigma_B**2 / 2) * u_hat, axes=(-2, -1), norm="ortho"
    )


@given(sizes, sizes, st.integers(2, 20), st.floats(0.1, 2), st.floats(1, 100), st.data(), seeds)
def test_blur_is_scipys(
    height: int, width: int, K: int, sigma_min: float, ratio: float, data: st.DataObject, seed: int
) -> None:
    """Any size, also not square, any schedule, a level of its own for each image of the batch."""
    blur = DCTBlur(blur_schedule(K, sigma_min, ratio * sigma_min), height, width)
    k = data.draw(st.lists(st.integers(0, K), min_size=1, max_size=4))
    u = random_images(seed, len(k), 2, height, width)
    blurred = blur(u.float(), torch.tensor(k))
    for image, level, result in zip(u, k, blurred, strict=True):
        np.testing.assert_allclose(
            result, scipy_blur(image.numpy(), float(blur.schedule[level])), atol=2e-6
        )


@pytest.fixture(scope="module")
def blur() -> DCTBlur:
    return DCTBlur(blur_schedule(20, 0.5, 16.0), 16, 12)


@given(seeds)
def test_level_zero_is_the_identity(blur: DCTBlur, seed: int) -> None:
    """Exactly, not up to a round trip through the DCT: u_0 is a target of the loss."""
    u = random_images(seed, 2, 1, 16, 12).float()
    assert torch.equal(blur(u, torch.zeros(2, dtype=torch.int64)), u)


def test_schedule_is_even_in_log() -> None:
    schedule = blur_schedule(5, 0.5, 8.0)
    assert schedule.dtype == torch.float64
    np.testing.assert_allclose(schedule, [0, 0.5, 1, 2, 4, 8], rtol=1e-12)


@pytest.mark.parametrize(("K", "low", "high"), [(0, 0.5, 20), (5, 0, 20), (5, -1, 20), (5, 2, 1)])
def test_impossible_schedules(K: int, low: float, high: float) -> None:
    with pytest.raises(ValueError, match="sigma_min"):
        blur_schedule(K, low, high)
