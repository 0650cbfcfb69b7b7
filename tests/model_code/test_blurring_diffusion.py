"""Blurring diffusion: schedule, posterior, and samples and bound where they are known; without blur, DDPM."""

import itertools
import math
from collections.abc import Sequence

import pytest
import torch

from model_code import build_process
from model_code.blurring_diffusion import (
    BlurringDiffusion,
    VelocityBlurringDiffusion,
    log_discretized_gaussian,
)
from model_code.dct import dct2, dct_matrix, idct2
from model_code.kernels import Chain, PosteriorKernel
from scripts.sampling.reverse import reverse_process
from tests.tiny import tiny_config

SIZE, K = 8, 40
CHAIN = (K, 33, 20, 19, 9, 2, 1, 0)
D = dct_matrix(SIZE)


class GaussianData:
    """Images in [-1, 1] (nominally) whose DCT coefficients are independent normals, and the best possible network for them."""

    def __init__(self, process: BlurringDiffusion) -> None:
        self.process = process
        n = torch.arange(SIZE, dtype=torch.float64)
        self.mean = torch.zeros(SIZE, SIZE, dtype=torch.float64)
        self.mean[0, 0], self.mean[1, 2] = -2.0, 0.7
        self.variance = 1 / (1 + n[:, None] ** 2 + n**2) ** 1.2  # most of it in low frequencies, as in images

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Images u_0 (count, 1, H, W), that is, (x + 1) / 2."""
        eps = torch.randn(count, 1, SIZE, SIZE, generator=generator, dtype=torch.float64)
        return ((idct2(self.mean + self.variance.sqrt() * eps, D, D) + 1) / 2).float()

    def marginal_variance(self, k: int) -> torch.Tensor:
        """Of z_k's coefficients (H, W)."""
        alpha, sigma = self.alpha_sigma(k)
        return alpha**2 * self.variance + sigma**2

    def alpha_sigma(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        alpha, sigma = self.process.alpha_sigma(torch.tensor([k]))
        return alpha[0, 0], sigma[0, 0]

    def __call__(self, z: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """E[eps | z_k]."""
        alpha, sigma = self.process.alpha_sigma(k)
        z_hat = dct2(z.double(), D, D)
        eps_hat = sigma * (z_hat - alpha * self.mean) / (alpha**2 * self.variance + sigma**2)
        return idct2(eps_hat, D, D).float()


def kernel(process: BlurringDiffusion, chain: Chain | None = None) -> PosteriorKernel:
    return process.sampling_noise("posterior", None, chain)


@pytest.fixture
def process() -> BlurringDiffusion:
    return BlurringDiffusion(K, blur_sigma_max=4.0, num_channels=1, image_size=SIZE)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def within_errors(values: torch.Tensor, expected: torch.Tensor, sigmas: float = 5.0) -> bool:
    """Whether the mean over the first axis is what is expected, within `sigmas` standard errors everywhere."""
    error = values.std(0) / math.sqrt(len(values))
    return bool(((values.mean(0) - expected).abs() <= sigmas * error).all())


@pytest.mark.parametrize("k", [1, 7, 20, 40])
def test_schedule_is_the_papers(k: int, process: BlurringDiffusion) -> None:
    """Log SNR -2 log tan(...) from 10 to -10; d = (1 - d_min) exp(-lambda tau) + d_min with sigma_B = max sin^2(pi t / 2)."""
    t = k / K
    first, last = math.atan(math.exp(-5)), math.atan(math.exp(5))
    log_snr = torch.tensor(-2 * math.log(math.tan(first + (last - first) * t)), dtype=torch.float64)
    tau = (4.0 * math.sin(math.pi * t / 2) ** 2) ** 2 / 2
    for n, m in ((0, 0), (1, 0), (3, 7)):
        d = 0.999 * math.exp(-(math.pi**2) * (n**2 + m**2) / SIZE**2 * tau) + 0.001
        alpha, sigma = process.alpha_sigma(torch.tensor([k]))
        assert alpha[0, 0, n, m] == pytest.approx(d * log_snr.sigmoid().sqrt().item(), rel=1e-9)
        assert sigma.item() == pytest.approx((-log_snr).sigmoid().sqrt().item(), rel=1e-9)


@pytest.mark.parametrize("blur_sigma_max", [0.0, 4.0, 20.0])
@pytest.mark.parametrize("chain", [range(10, -1, -1), CHAIN, range(1000, -1, -1)], ids=len)
def test_reverse_step_is_the_posterior_of_the_image(chain: Sequence[int], blur_sigma_max: float) -> None:
    """Given the true eps, mean and standard deviation are those of z_j given z_k and x, by conditioning of normals."""
    process = BlurringDiffusion(chain[0], blur_sigma_max, 1, SIZE)
    posterior = kernel(process, tuple(chain))
    u0, eps = normal(1, 1, SIZE, SIZE).sigmoid(), normal(1, 1, SIZE, SIZE, seed=1)
    x = dct2(2 * u0.double() - 1, D, D)
    for k, j in list(itertools.pairwise(chain[:-1]))[:: len(chain) // 10 or 1]:
        z, _ = process.corrupt(u0, torch.tensor([k]), eps)
        mean = posterior.mean(z, eps, torch.tensor([k]))
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (process.alpha_sigma(torch.tensor([level])) for level in (k, j))
        covariance = alpha_t / alpha_s * sigma_s**2  # of z_s and z_t = alpha_{t|s} z_s + noise, given x
        z_hat = dct2(z.double(), D, D)
        expected = alpha_s * x + covariance / sigma_t**2 * (z_hat - alpha_t * x)
        torch.testing.assert_close(dct2(mean.double(), D, D), expected, atol=1e-4, rtol=1e-3)  # few steps amplify rounding
        std = (sigma_s**2 - covariance**2 / sigma_t**2).sqrt()
        noise = posterior.step(mean, k, eps) - mean
        torch.testing.assert_close(dct2(noise.double(), D, D), std * dct2(eps.double(), D, D), atol=2e-6, rtol=1e-4)


def test_last_mean_is_the_image(process: BlurringDiffusion) -> None:
    """At k = 1 the mean is the estimate of x itself, without noise."""
    u0, eps = normal(2, 1, SIZE, SIZE).sigmoid(), normal(2, 1, SIZE, SIZE, seed=1)
    k = torch.ones(2, dtype=torch.int64)
    z, _ = process.corrupt(u0, k, eps)
    mean = kernel(process).mean(z, eps, k)
    torch.testing.assert_close(process.to_images(mean), u0, atol=1e-5, rtol=0)
    assert torch.equal(kernel(process).step(mean, 1, eps), mean)


def test_the_deterministic_step_keeps_the_noise(process: BlurringDiffusion) -> None:
    """DDIM: given the true eps it leads to z_j with the same eps, and adds none; so any chain ends at the image."""
    u0, eps = normal(2, 1, SIZE, SIZE).sigmoid(), normal(2, 1, SIZE, SIZE, seed=1)
    ddim = process.sampling_noise("auto", None, CHAIN, eta=0.0)
    k, j = torch.tensor([33, 9]), torch.tensor([20, 2])
    z, _ = process.corrupt(u0, k, eps)
    expected, _ = process.corrupt(u0, j, eps)
    mean = ddim.mean(z, eps, k)
    torch.testing.assert_close(mean, expected, atol=1e-4, rtol=1e-3)
    assert torch.equal(ddim.step(mean, 33, eps), mean)
    part = process.sampling_noise("auto", None, CHAIN[1:], eta=0.0)  # from K rounding would be amplified 150,000 times
    z, _ = process.corrupt(u0, torch.full((2,), 33), eps)
    end = reverse_process(process, lambda z, k: eps, z, part, lambda k: torch.full_like(eps, torch.nan))
    torch.testing.assert_close(process.to_images(end), u0, atol=1e-3, rtol=0)


def test_without_blur_it_is_ddpm() -> None:
    """Posterior mean and variance of Ho et al. (2020), equations 7 and 11, in terms of beta."""
    process = BlurringDiffusion(K, 0.0, 1, SIZE)
    u0, eps = normal(1, 1, SIZE, SIZE).sigmoid(), normal(1, 1, SIZE, SIZE, seed=1)
    x = 2 * u0 - 1
    for t in (2, 10, K):
        bar, bar_before = process.a[t] ** 2, process.a[t - 1] ** 2
        beta = 1 - bar / bar_before
        z, _ = process.corrupt(u0, torch.tensor([t]), eps)
        torch.testing.assert_close(z, (bar.sqrt() * x + (1 - bar).sqrt() * eps).float(), atol=1e-5, rtol=0)
        mean = kernel(process).mean(z, eps, torch.tensor([t]))
        by_eps = (z - beta / (1 - bar).sqrt() * eps) / (1 - beta).sqrt()
        torch.testing.assert_close(mean, by_eps.float(), atol=2e-5, rtol=1e-4)
        by_x = bar_before.sqrt() * beta / (1 - bar) * x + (1 - beta).sqrt() * (1 - bar_before) / (1 - bar) * z
        torch.testing.assert_close(mean, by_x.float(), atol=2e-5, rtol=1e-4)
        variance = (1 - bar_before) / (1 - bar) * beta
        noise = kernel(process).step(mean, t, eps) - mean
        torch.testing.assert_close(noise, (variance.sqrt() * eps).float(), atol=2e-6, rtol=1e-4)


def sampled_moments(data: GaussianData) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of the samples' coefficients with the best network: every step is linear in each frequency."""
    mean, variance = torch.zeros(SIZE, SIZE, dtype=torch.float64), torch.ones(SIZE, SIZE, dtype=torch.float64)
    posterior = kernel(data.process)
    for k in range(data.process.K, 0, -1):
        of_z, of_eps, added = (c[0, 0] for c in posterior.coefficients(torch.tensor([k])))
        alpha, sigma = data.alpha_sigma(k)
        slope = sigma / data.marginal_variance(k)  # of E[eps | z]
        mean = of_z * mean + of_eps * slope * (mean - alpha * data.mean)
        variance = (of_z + of_eps * slope) ** 2 * variance + added
    return mean, variance


def test_samples_have_the_spectrum_of_the_data(process: BlurringDiffusion) -> None:
    """Samples have the moments that so many steps give, and many steps give those of the data."""
    data, count = GaussianData(process), 2000
    generator = torch.Generator().manual_seed(3)
    z_K = torch.randn(count, 1, SIZE, SIZE, generator=generator)
    posterior = kernel(process)
    samples = reverse_process(process, data, z_K, posterior, lambda k: torch.randn(z_K.shape, generator=generator))
    mean, variance = sampled_moments(data)
    coefficients = dct2(samples.double(), D, D)[:, 0]
    assert within_errors(coefficients, mean)
    assert within_errors((coefficients - mean) ** 2, variance)

    many = GaussianData(BlurringDiffusion(1000, 4.0, 1, SIZE))
    mean, variance = sampled_moments(many)
    torch.testing.assert_close(mean, many.mean, atol=0.02, rtol=0)
    torch.testing.assert_close(variance, many.variance, rtol=0.07, atol=0)


def expected_term(data: GaussianData, k: int, j: int) -> torch.Tensor:
    """The expectation of the step k -> j in the bound: means differ by the error of eps, whose variance given z is
    alpha^2 s^2 / var(z)."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = data.alpha_sigma(k), data.alpha_sigma(j)
    snr_ratio = (alpha_s / sigma_s * sigma_t / alpha_t) ** 2
    return (0.5 * (snr_ratio - 1) * alpha_t**2 * data.variance / data.marginal_variance(k)).sum()


def expected_prior_term(data: GaussianData) -> torch.Tensor:
    alpha, sigma = data.alpha_sigma(data.process.K)
    return 0.5 * (alpha**2 * (data.variance + data.mean**2) + sigma**2 - 1 - 2 * sigma.log()).sum()


def test_bound_of_gaussian_data_is_the_closed_form(process: BlurringDiffusion) -> None:
    """Diffusion and prior terms, measured and expected, for steps to the next level and over several."""
    data, count, posterior = GaussianData(process), 4000, kernel(process, CHAIN)
    u0, prior = data.draw(count, torch.Generator().manual_seed(4)), process.build_prior([])
    summary = process.prior_summary(u0, prior)
    assert within_errors(process.prior_term(summary, prior, posterior)[:, None], expected_prior_term(data))
    assert process.bound_levels(posterior) == sorted(CHAIN[:-2])
    for k, j in itertools.pairwise(CHAIN[:-1]):
        levels, eps = torch.full((count,), k), normal(count, 1, SIZE, SIZE, seed=k)
        terms = process.terms(process.errors(data, u0, levels, eps, posterior), levels, posterior)
        assert within_errors(terms[:, None], expected_term(data, k, j))


def test_reconstruction_is_a_distribution_over_256_values(process: BlurringDiffusion) -> None:
    """Probabilities sum to 1, whatever the estimate; far from it they are tiny, but not 0."""
    x = torch.linspace(-1, 1, 256, dtype=torch.float64)
    for mean in (-1.2, -1.0, 0.0013, 0.7, 1.0):
        log_p = log_discretized_gaussian(x, torch.tensor(mean), torch.tensor(0.02, dtype=torch.float64))
        assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-12)
        assert log_p.isfinite().all()
    u0, eps = torch.full((1, 1, SIZE, SIZE), 100 / 255), normal(1, 1, SIZE, SIZE)
    errors = process.errors(lambda z, k: eps, u0, torch.tensor([1]), eps, kernel(process))
    std = (process.sigma[1] / process.a[1]).item()
    nearest = math.erf(1 / 255 / (std * math.sqrt(2)))
    assert process.reconstruction(errors, kernel(process)).item() == pytest.approx(-(SIZE**2) * math.log(nearest), rel=1e-3)


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


def test_a_network_that_predicts_v_is_another_way_to_predict_eps() -> None:
    """From the true v follows the true eps; an error in it reaches the image at most as large, but for rounding."""
    process = VelocityBlurringDiffusion(K, 4.0, 1, SIZE)
    u0, eps, k = normal(3, 1, SIZE, SIZE).sigmoid(), normal(3, 1, SIZE, SIZE, seed=1), torch.tensor([1, K // 2, K])
    alpha, sigma = process.alpha_sigma(k)
    x_hat, eps_hat = (dct2(image.double(), D, D) for image in (2 * u0 - 1, eps))
    v = idct2((alpha * eps_hat - sigma * x_hat) / (alpha**2 + sigma**2).sqrt(), D, D)
    z, target = process.corrupt(u0, k, eps)
    found = process.predict(lambda z, k: v, z, k)
    torch.testing.assert_close(found, target, atol=1e-5, rtol=1e-5)

    off = normal(3, 1, SIZE, SIZE, seed=2).double()
    error_of_x = sigma / alpha * dct2(process.predict(lambda z, k: v + off, z, k).double() - found, D, D)
    assert (error_of_x.abs() <= dct2(off, D, D).abs() + 0.1).all()


def test_levels_may_be_mixed_in_a_batch(process: BlurringDiffusion) -> None:
    """Errors of an image do not depend on the levels of the others, k = 1 among them."""
    data = GaussianData(process)
    u0, eps = data.draw(3, torch.Generator().manual_seed(5)).clamp(0, 1), normal(3, 1, SIZE, SIZE)
    k = torch.tensor([1, 2, K])
    together = process.errors(data, u0, k, eps, kernel(process))
    alone = torch.cat([process.errors(data, u0[i : i + 1], k[i : i + 1], eps[i : i + 1], kernel(process)) for i in range(3)])
    assert together.isfinite().all()
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_transforms_are_exact_under_autocast(process: BlurringDiffusion) -> None:
    """Mixed precision is the network's affair: in bfloat16 the transforms would lose the image."""
    u0, eps = normal(2, 1, SIZE, SIZE).sigmoid(), normal(2, 1, SIZE, SIZE, seed=1)
    k = torch.tensor([1, K])
    z, _ = process.corrupt(u0, k, eps)
    mean = kernel(process).mean(z, eps, k)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(process.corrupt(u0, k, eps)[0], z)
        assert torch.equal(kernel(process).mean(z, eps, k), mean)


@pytest.mark.parametrize(
    ("process", "key", "value"),
    [
        ("heat", "blur_sigma_max", 0.1),
        ("heat", "sampling_noise", "posterior"),
        ("blurring_diffusion", "blur_sigma_max", -1.0),
        ("blurring_diffusion", "sampling_noise", "isotropic"),
        ("melting", "process", "melting"),
    ],
)
def test_processes_check_their_settings(process: str, key: str, value: object) -> None:
    """Each its own; the message names the key."""
    noise = "isotropic" if process == "heat" else "posterior"
    config = tiny_config(model__process=process, model__sampling_noise=noise)
    config.model[key] = value
    with pytest.raises(ValueError, match=rf"config\.model\.{key} = '?{value}'?: must be"):
        build_process(config)
