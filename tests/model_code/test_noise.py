"""Sampling noise: a constant spectrum is the isotropic noise; on Gaussian data the measured one is the right one."""

import math

import numpy as np
import pytest
import torch

from model_code.blur import DCTBlur, blur_schedule
from model_code.dct import dct2, idct2
from model_code.elbo import gaussian_kl, negative_log_density
from model_code.noise import IsotropicNoise, SpectralNoise, ring_sums, rings
from model_code.process import HeatDissipation
from scripts.runtime.device import Precision
from scripts.sampling.measurement import measure_noise
from scripts.sampling.reverse import reverse_process
from tests.golden import Golden

CPU = torch.device("cpu")
SIGMA, K, SIZE = 0.01, 60, 8
BLUR = DCTBlur(blur_schedule(K, 0.5, 5.0), SIZE, SIZE)
PROCESS = HeatDissipation(BLUR, SIGMA)
VARIANCES = 0.5 / (1 + rings(SIZE, SIZE).float() ** 2) ** 1.5
"""Of the DCT coefficients of the images below, the same in a ring: float32 (H, W), falling as those of natural images do."""
MEAN = torch.full((1, 1, SIZE, SIZE), 0.5)


def gaussian_images(count: int, seed: int = 0) -> torch.Tensor:
    """Images whose DCT coefficients are independent normals with `VARIANCES`."""
    eps = torch.from_numpy(np.random.default_rng(seed).standard_normal((count, 1, SIZE, SIZE)).astype(np.float32))
    return MEAN + idct2(eps * VARIANCES.sqrt(), BLUR.D_H, BLUR.D_W)


def best_denoiser(u: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """f(u_k, k) with the posterior mean of A_{k-1} u_0, which is linear for such images."""
    before, after = BLUR.decay(k - 1), BLUR.decay(k)
    gain = before * after * VARIANCES / (after**2 * VARIANCES + SIGMA**2)
    return MEAN + idct2(gain * dct2(u - MEAN, BLUR.D_H, BLUR.D_W), BLUR.D_H, BLUR.D_W) - u


def known_errors() -> torch.Tensor:
    """E_k[n, m], the posterior variances of the coefficients of A_{k-1} u_0: (K + 1, H, W), 0 for k = 0."""
    k = torch.arange(1, K + 1)
    before, after = BLUR.decay(k - 1)[:, 0].double(), BLUR.decay(k)[:, 0].double()
    errors = before**2 * VARIANCES * SIGMA**2 / (after**2 * VARIANCES + SIGMA**2)
    return torch.cat([torch.zeros(1, SIZE, SIZE), errors])


def by_ring(coefficients: torch.Tensor) -> torch.Tensor:
    """Means over rings: (K + 1, H, W) to (K + 1, R)."""
    return ring_sums(coefficients[:, None]) / ring_sums(torch.ones(1, 1, SIZE, SIZE))


SPECTRAL = SpectralNoise(by_ring(known_errors()), SIGMA, SIZE, SIZE)


def test_rings() -> None:
    """Distances from the constant, rounded; sums over them keep the energy, as the basis is orthonormal."""
    assert rings(3, 3).tolist() == [[0, 1, 2], [1, 1, 2], [2, 2, 3]]
    u = torch.rand(4, 3, SIZE, SIZE)
    squares = dct2(u, BLUR.D_H, BLUR.D_W).square()
    torch.testing.assert_close(ring_sums(squares).sum(1), u.double().square().sum((1, 2, 3)), rtol=1e-5, atol=0)


def test_a_constant_spectrum_samples_as_the_isotropic_noise(golden: Golden) -> None:
    """The original's trajectory through both paths."""
    noise, delta, sigma = golden["sampler_noise"], golden.settings["delta"], golden.settings["sigma"]
    K, size = golden.settings["K"], golden.settings["image_size"]
    num_rings = int(rings(size, size).max()) + 1
    constant = SpectralNoise(torch.full((K + 1, num_rings), delta**2 - sigma**2), sigma, size, size)
    sample = reverse_process(golden.model, golden["init"], K, constant, lambda k: noise[k - 1])
    assert (sample - golden["sample"]).norm() < 1e-3 * golden["sample"].norm()


def test_the_bound_of_a_constant_spectrum_is_the_papers() -> None:
    delta, N = 0.0125, SIZE**2
    errors = PROCESS.errors(best_denoiser, gaussian_images(5), torch.full((5,), 7), torch.randn(5, 1, SIZE, SIZE))
    constant = SpectralNoise(torch.full((K + 1, errors.shape[1]), delta**2 - SIGMA**2), SIGMA, SIZE, SIZE)
    constant.variance[1] = delta**2
    squares = errors.sum(1)
    term = 0.5 * (SIGMA**2 / delta**2 * N - N + squares / delta**2 + 2 * N * math.log(delta / SIGMA))
    reconstruction = 0.5 * squares / delta**2 + N * math.log(delta * math.sqrt(2 * math.pi))
    for noise in (IsotropicNoise(delta), constant):
        torch.testing.assert_close(PROCESS.terms(errors, torch.full((5,), 7), noise), term)
        torch.testing.assert_close(PROCESS.reconstruction(errors, noise), reconstruction)


def test_terms_against_torch() -> None:
    """A term is a divergence of Gaussians, the reconstruction minus a log density, also where variances differ."""
    generator = torch.Generator().manual_seed(0)
    a, b, w = (torch.rand(6, generator=generator, dtype=torch.float64) + 0.1 for _ in range(3))
    p, q = torch.distributions.Normal(a, SIGMA), torch.distributions.Normal(b, w.sqrt())
    ones, errors = torch.ones(6), (a - b).square()
    divergence = torch.distributions.kl_divergence(p, q).sum()
    torch.testing.assert_close(gaussian_kl(errors, SIGMA**2, w, ones), divergence)
    torch.testing.assert_close(negative_log_density(errors, w, ones), -q.log_prob(a).sum())


def test_the_measured_spectrum_is_the_known_one() -> None:
    state = measure_noise(PROCESS, best_denoiser, Precision.named(CPU, "float32"), gaussian_images(400), 0, 100)
    assert state is not None
    found, expected = state["errors"].double()[1:], SPECTRAL.errors[1:]
    # Of a ring of n coefficients and 400 images the mean square has a relative error of sqrt(2 / (400 n)).
    tolerance = 4.5 * (2 / (400 * ring_sums(torch.ones(1, 1, SIZE, SIZE))[0])).sqrt()
    assert ((found - expected).abs() < tolerance * expected + 1e-13).all(), "up to the rounding of float32"


def power_spectrum_of_samples(noise: IsotropicNoise | SpectralNoise, count: int = 4000) -> torch.Tensor:
    """Mean squares of the DCT coefficients of samples from the best model, by ring: (R,)."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda k: torch.randn(count, 1, SIZE, SIZE, generator=generator)  # noqa: E731
    u_K = BLUR(gaussian_images(count, 5), torch.full((count,), K)) + noise.prior_std * draw(0)
    samples = reverse_process(best_denoiser, u_K, K, noise, draw)
    squares = dct2(samples - MEAN, BLUR.D_H, BLUR.D_W).square()
    return ring_sums(squares).mean(0) / ring_sums(torch.ones(1, 1, SIZE, SIZE))[0]


def test_samples_have_the_power_spectrum_of_the_data() -> None:
    """With the right noise within the error of 4,000 samples, and no single delta does that.

    A sample is the last mean: its variance is that of the data less E_1, which nobody can know of u_0 from u_1.
    """
    data = by_ring(VARIANCES[None].double() - known_errors()[1:2])[0]
    spectral = power_spectrum_of_samples(SPECTRAL) / data
    assert ((spectral - 1).abs() < 0.1).all(), spectral
    for delta in (1.0, 1.25, 1.5):
        isotropic = power_spectrum_of_samples(IsotropicNoise(delta * SIGMA)) / data
        assert ((isotropic - 1).abs() > 0.15).any(), (delta, isotropic)


def test_no_isotropic_bound_is_below_the_spectral_one() -> None:
    """Each term is a minimum over the variances, in closed form 1/2 sum log(delta_f^2 / sigma^2)."""
    errors = torch.stack([known_errors()[1:]], 1)
    sums, k = ring_sums(errors), torch.arange(1, K + 1)
    spectral = PROCESS.terms(sums, k, SPECTRAL)[1:]
    variance = SPECTRAL.variance[2:]
    expected = 0.5 * (ring_sums(torch.ones(1, 1, SIZE, SIZE)) * (variance / SIGMA**2).log()).sum(1)
    torch.testing.assert_close(spectral, expected, rtol=1e-6, atol=1e-9)
    for ratio in np.linspace(0.9, 2, 23):
        noise = IsotropicNoise(ratio * SIGMA)
        assert (PROCESS.terms(sums, k, noise)[1:] >= spectral - 1e-9).all()
        assert PROCESS.reconstruction(sums[:1], noise) > PROCESS.reconstruction(sums[:1], SPECTRAL)


def test_a_checkpoint_without_a_spectrum_says_what_to_run() -> None:
    with pytest.raises(ValueError, match=r"run python -m scripts\.tools\.measure_noise"):
        PROCESS.sampling_noise("spectral", None)
    again = PROCESS.sampling_noise("spectral", SPECTRAL.state_dict())
    torch.testing.assert_close(again.variances(torch.arange(1, K + 1), 11), SPECTRAL.variance[1:], rtol=1e-6, atol=0)
