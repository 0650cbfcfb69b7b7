"""Steps of blurring diffusion between any two levels, ancestral and deterministic."""

import itertools

import pytest
import torch

from model_code.blurring_diffusion import BlurringDiffusion
from model_code.dct import dct2
from scripts.sampling.reverse import reverse_process
from tests.model_code.test_blurring_diffusion import SIZE, D, GaussianData, K, expected_terms, kernel, normal, within_errors

SKIPPING = (K, 33, 20, 9, 2, 0)


@pytest.fixture
def process() -> BlurringDiffusion:
    return BlurringDiffusion(K, blur_sigma_max=4.0, num_channels=1, image_size=SIZE)


@pytest.mark.parametrize(("k", "j"), itertools.pairwise(SKIPPING[:-1]))
def test_a_step_over_levels_is_the_posterior(k: int, j: int, process: BlurringDiffusion) -> None:
    """Given the true eps, mean and standard deviation are those of z_j given z_k and x, by conditioning of normals."""
    u0, eps = normal(1, 1, SIZE, SIZE).sigmoid(), normal(1, 1, SIZE, SIZE, seed=1)
    x, level = dct2(2 * u0.double() - 1, D, D), torch.tensor([k])
    z, _ = process.corrupt(u0, level, eps)
    (alpha_k, sigma_k), (alpha_j, sigma_j) = process.alpha_sigma(level), process.alpha_sigma(torch.tensor([j]))
    covariance = alpha_k / alpha_j * sigma_j**2
    expected = alpha_j * x + covariance / sigma_k**2 * (dct2(z.double(), D, D) - alpha_k * x)
    posterior = kernel(process, SKIPPING)
    mean = posterior.mean(z, eps, level)
    torch.testing.assert_close(dct2(mean.double(), D, D), expected, atol=1e-4, rtol=1e-3)
    std = (sigma_j**2 - covariance**2 / sigma_k**2).sqrt()
    noise = dct2((posterior.step(mean, k, eps) - mean).double(), D, D)
    torch.testing.assert_close(noise, std * dct2(eps.double(), D, D), atol=2e-6, rtol=1e-4)


def test_the_deterministic_step_keeps_the_noise(process: BlurringDiffusion) -> None:
    """DDIM: given the true eps it leads to z_j with the same eps, and adds none; so any chain ends at the image."""
    u0, eps = normal(2, 1, SIZE, SIZE).sigmoid(), normal(2, 1, SIZE, SIZE, seed=1)
    ddim = process.sampling_noise("auto", None, SKIPPING, eta=0.0)
    k, j = torch.tensor([33, 9]), torch.tensor([20, 2])
    z, _ = process.corrupt(u0, k, eps)
    expected, _ = process.corrupt(u0, j, eps)
    mean = ddim.mean(z, eps, k)
    torch.testing.assert_close(mean, expected, atol=1e-4, rtol=1e-3)
    assert torch.equal(ddim.step(mean, 33, eps), mean)
    part = process.sampling_noise("auto", None, SKIPPING[1:], eta=0.0)  # from K rounding would be amplified 150,000 times
    z, _ = process.corrupt(u0, torch.full((2,), 33), eps)
    end = reverse_process(process, lambda z, k: eps, z, part, lambda k: torch.full_like(eps, torch.nan))
    torch.testing.assert_close(process.to_images(end), u0, atol=1e-3, rtol=0)


def test_bound_over_fewer_levels_is_the_closed_form(process: BlurringDiffusion) -> None:
    data, count, posterior = GaussianData(process), 4000, kernel(process, SKIPPING)
    u0 = data.draw(count, torch.Generator().manual_seed(4))
    assert process.bound_levels(posterior) == [9, 20, 33, K]
    for k, j in itertools.pairwise(SKIPPING[:-1]):
        levels = torch.full((count,), k)
        terms = process.terms(
            process.errors(data, u0, levels, normal(count, 1, SIZE, SIZE, seed=k), posterior), levels, posterior
        )
        assert within_errors(terms[:, None], expected_terms(data, levels[:1], torch.tensor([j])))


def test_what_this_process_does_not_have(process: BlurringDiffusion) -> None:
    """--delta has no meaning here, and other variances than the posterior's have no bound."""
    assert process.sampling_noise("auto", None).label == process.sampling_noise("auto", None, eta=1.0).label == "posterior"
    for kind in (0.01, "spectral"):
        with pytest.raises(ValueError, match="leave --delta out"):
            process.sampling_noise(kind, None)
    process.require_bound(kernel(process))
    with pytest.raises(ValueError, match=r"--eta=0.5: there is a bound for ancestral sampling only"):
        process.require_bound(process.sampling_noise("auto", None, eta=0.5))
    with pytest.raises(ValueError, match="does not know which levels are best"):
        process.best_chain(None, 5)
