"""Samples given an observation: those of Gaussian images have a known distribution."""

import pytest
import torch

from model_code.dct import dct2, idct2
from model_code.observation import (
    BlockMeans,
    KnownPixels,
    LowFrequencies,
    Observation,
    ObservedKernel,
    agree,
)
from model_code.process import ReverseKernel
from scripts.sampling.calibration import calibrate
from scripts.sampling.reverse import reverse_process
from tests.images import random_images
from tests.model_code.test_gaussian import (
    FLOAT32,
    SIZE,
    GaussianData,
    make,
    normal,
    within_errors,
)

COUNT = 2000
KNOWN = torch.zeros(SIZE, SIZE, dtype=torch.bool)
KNOWN[:3, :3] = True


def checkerboard() -> torch.Tensor:
    return torch.arange(SIZE)[:, None].add(torch.arange(SIZE)).remainder(3) > 0


def observations(u: torch.Tensor) -> dict[str, Observation]:
    """Of images (B, C, 8, 8)."""
    return {
        "block means": BlockMeans(BlockMeans(u[:, :, :4, :4], 2).measure(u), 2),
        "pixels": KnownPixels(u, checkerboard()),
        "low frequencies": LowFrequencies(dct2(u), KNOWN),
    }


@pytest.mark.parametrize("name", ["block means", "pixels", "low frequencies"])
def test_what_is_lifted_is_measured(name: str) -> None:
    """H H^+ y = y, H^+ H is an orthogonal projection, and images that have y stay as they are."""
    u, v = random_images(2, 3, 2, SIZE, SIZE)
    seen = observations(u)[name]
    torch.testing.assert_close(seen.measure(seen.lift(seen.y)), seen.y)

    def projected(image: torch.Tensor) -> torch.Tensor:
        return seen.lift(seen.measure(image))

    inner = (projected(u) * (v - projected(v))).sum()
    torch.testing.assert_close(inner, torch.zeros(()), atol=1e-4, rtol=0)
    torch.testing.assert_close(agree(seen, u), u)
    assert (seen.measure(agree(seen, v)) - seen.y).abs().max() < 0.02
    assert (seen.measure(v) - seen.y).abs().max() > 0.3


@pytest.mark.parametrize("name", ["flow", "v", "heat"])
@pytest.mark.parametrize("sigma", [0.0, 0.2])
def test_gaussian_images_given_low_frequencies(name: str, sigma: float) -> None:
    """Samples have the mean and the variance of p(u_0 | y), with noise on y and without; without
    the correction they do not.
    """
    process = make(name)
    data = GaussianData(process)
    state = calibrate(process, data, FLOAT32, data.draw(1500, 7), 0, 500)
    low, high = process.image_range
    scale, shift = high - low, torch.zeros(SIZE, SIZE, dtype=torch.float64)
    shift[0, 0] = low * SIZE
    prior_mean, prior = (data.mean - shift) / scale, data.variance / scale**2
    y = prior_mean + 1.5 * prior.sqrt()
    share = KNOWN * prior / (prior + sigma**2)
    mean, variance = prior_mean + share * (y - prior_mean), prior * (1 - share)

    first = process.from_images(data.draw(COUNT, 9))
    if name == "heat":  # what is left of the image at level K has to be that of p(u_0 | y)
        ends = mean + variance.sqrt() * normal(COUNT, 1, SIZE, SIZE, seed=9)
        first = idct2(ends).float()
    k = torch.full((COUNT,), process.K)
    z_K = process.blur(first, k) + process.sigma[-1].float() * normal(COUNT, 1, SIZE, SIZE, seed=5)
    generator = torch.Generator().manual_seed(3)

    def sample(kernel: ReverseKernel) -> torch.Tensor:
        def draw(_: int) -> torch.Tensor:
            return torch.randn(z_K.shape, generator=generator)

        images = process.to_images(reverse_process(process, data, z_K, kernel, draw))
        return dct2(images.double())[:, 0]

    plain = process.reverse_kernel("calibrated", state, eta=1.0)
    found = sample(ObservedKernel(plain, LowFrequencies(y[None, None].float(), KNOWN, sigma)))
    if sigma == 0:
        torch.testing.assert_close(found[:, KNOWN], y[KNOWN].expand(COUNT, -1), atol=1e-4, rtol=0)
    else:
        assert within_errors(found[:, KNOWN], mean[KNOWN])
        error = plain.estimate_error(torch.tensor([1]))[0, 0] / scale**2
        left = error * sigma**2 / (error + sigma**2)  # samples are the last step's mean
        assert within_errors((found - mean)[:, KNOWN] ** 2, (variance - left)[KNOWN])
    assert within_errors(found[:, ~KNOWN], mean[~KNOWN], 10)  # the calibration has errors, too
    if name != "heat":
        assert not within_errors(sample(plain)[:, KNOWN], mean[KNOWN])


def test_a_kernel_without_estimates_is_refused() -> None:
    process = make("heat")
    seen = LowFrequencies(torch.zeros(1, 1, SIZE, SIZE), KNOWN)
    with pytest.raises(ValueError, match="needs the calibrated kernel"):
        ObservedKernel(process.reverse_kernel(0.05), seen)
