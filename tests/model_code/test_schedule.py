"""Matched blur schedules: equal steps on spectra that are known, and the closed forms of white and
1 / radius^2 ones.
"""

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from model_code.blur import DCTBlur, blur_schedule
from model_code.schedule import matched_schedule, removed_variance
from model_code.spectrum import radii_of
from scripts.tools.data_sheet import kept_variance


def power(size: int, exponent: float) -> torch.Tensor:
    radii = radii_of(size, size)
    return torch.where(
        radii > 0, radii.clamp(min=1) ** exponent, 1e9
    )  # the constant's does not count


@pytest.mark.parametrize(
    ("size", "exponent", "K", "sigma_max"),
    [
        (28, -2.0, 100, 20.0),
        (32, -3.0, 200, 24.0),
        (64, 0.0, 50, 32.0),
        (16, -1.0, 3, 8.0),
        (28, -2.5, 1000, 20.0),
    ],
)
def test_equal_steps_on_a_known_spectrum(
    size: int, exponent: float, K: int, sigma_max: float
) -> None:
    sigma_B = matched_schedule(power(size, exponent), K, 0.5, sigma_max)
    assert (sigma_B[0], sigma_B[1], sigma_B[-1], len(sigma_B)) == (0, 0.5, sigma_max, K + 1)
    assert sigma_B.diff().min() > 0
    decay = torch.exp(
        -((np.pi * radii_of(size, size) / size) ** 2) * sigma_B[:, None, None] ** 2 / 2
    )
    steps = ((decay[:-1] - decay[1:]) ** 2 * power(size, exponent)).sum((1, 2))  # by brute force
    torch.testing.assert_close(removed_variance(sigma_B, power(size, exponent)), steps)
    assert steps[1:].max() / steps[1:].min() < 1.01
    even = blur_schedule(K, 0.5, sigma_max)
    log_steps = removed_variance(even, power(size, exponent))[1:]
    assert log_steps.max() / log_steps.min() > 1.05, "or the test says nothing"


def test_equal_steps_between_images() -> None:
    """R_k is the mean squared distance of deviations from the mean image between two levels:
    measured on images.
    """
    images = torch.from_numpy(np.random.default_rng(0).random((400, 2, 12, 12)).cumsum(2).cumsum(3))
    deviations = images - images.mean(0)
    deviations -= deviations.mean((2, 3), keepdim=True)
    spectrum = (
        torch.from_numpy(dctn(deviations.numpy(), axes=(2, 3), norm="ortho"))
        .square()
        .mean(0)
        .sum(0)
    )
    sigma_B = matched_schedule(spectrum, 12, 0.5, 6.0)
    blur = DCTBlur(sigma_B, 12, 12)
    blurred = torch.stack([blur(deviations.float(), torch.full((400,), k)) for k in range(13)])
    steps = (blurred[1:] - blurred[:-1]).square().sum((2, 3, 4)).mean(1)
    assert steps[1:].max() / steps[1:].min() < 1.01
    kept = blurred.square().sum((2, 3, 4)).mean(1)
    shares = torch.tensor([kept_variance(sigma.item(), spectrum) for sigma in sigma_B])
    torch.testing.assert_close(shares, kept / kept[0], rtol=1e-3, atol=0)


def test_a_white_spectrum_is_even_in_one_over_sigma() -> None:
    """Far from pixels and from the image's size sum (d d_k / dt)^2 ~ t^-3, so that the curve's
    length grows as 1 / sigma_B.
    """
    sigma_B = matched_schedule(power(256, 0.0), 100, 2.0, 16.0)
    closed_form = 1 / torch.linspace(1 / 2, 1 / 16, 100, dtype=torch.float64)
    torch.testing.assert_close(sigma_B[1:], closed_form, rtol=0.01, atol=0)


def test_a_spectrum_of_1_over_radius_squared_is_even_in_log() -> None:
    """The paper's schedule is the matched one of images that have the same variance in every
    octave.
    """
    sigma_B = matched_schedule(power(512, -2.0), 100, 3.0, 24.0)
    torch.testing.assert_close(sigma_B, blur_schedule(100, 3.0, 24.0), rtol=0.01, atol=0)


def test_small_and_impossible_schedules() -> None:
    assert matched_schedule(power(8, -2.0), 1, 0.5, 4.0).tolist() == [0, 0.5]
    assert matched_schedule(power(8, -2.0), 2, 0.5, 4.0).tolist() == [0, 0.5, 4.0]
    with pytest.raises(ValueError, match="alike but for their brightness"):
        matched_schedule(torch.eye(8)[:1] * torch.eye(8)[:, :1], 5, 0.5, 4.0)
    with pytest.raises(ValueError, match="alike but for their brightness"):
        matched_schedule(torch.full((8, 8), float("nan")), 5, 0.5, 4.0)
    with pytest.raises(ValueError, match="alike but for their brightness"):  # rounding errors
        matched_schedule(torch.full((8, 8), 1e-10), 5, 0.5, 4.0)
