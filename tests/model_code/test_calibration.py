"""Reverse kernels: the paper's is a special case; on Gaussian data the calibrated ones are the
best, in closed form.
"""

import functools
import itertools
import math

import numpy as np
import pytest
import torch

from model_code.blur import DCTBlur, blur_schedule
from model_code.calibration import (
    Bins,
    Calibration,
    calibration_state,
    frequency_bins,
    level_state,
    measured_bins,
    moments,
    shortest_path,
)
from model_code.dct import LUMINANCE_CHROMINANCE, dct2, eigenvalues, idct2
from model_code.elbo import gaussian_kl, negative_log_density
from model_code.gaussian import GaussianProcess
from model_code.kernels import Fit, GaussianKernel
from model_code.presets import flow_matching, heat_dissipation
from model_code.process import Chain, Denoiser
from model_code.spectrum import bin_sums
from scripts.runtime.device import Precision
from scripts.sampling.calibration import calibrate
from scripts.sampling.reverse import reverse_process
from tests.gaussian import (
    MEAN,
    SIGMA,
    SIZE,
    VARIANCES,
    gaussian_images,
    posterior_mean,
    posterior_variance,
)
from tests.golden import Golden

CPU = torch.device("cpu")
K = 30
BLUR = DCTBlur(blur_schedule(K, 0.5, 5.0), SIZE, SIZE)
PROCESS = heat_dissipation(BLUR, SIGMA, num_channels=1)
BINS = frequency_bins(SIZE, SIZE, 3000)
"""With so many images every radius is on its own, and closed forms are exact."""
ALL = PROCESS.chain
SKIPPING = (K, 24, 23, 15, 9, 4, 1, 0)


def best_denoiser(u: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """f(u_k, k) with the posterior mean of A_{k-1} u_0."""
    return posterior_mean(BLUR, u, k, k - 1) - u


def by_bin(coefficients: torch.Tensor) -> torch.Tensor:
    """Means over bins: (..., H, W) to (..., R)."""
    return bin_sums(coefficients, BINS) / bin_sums(torch.ones(SIZE, SIZE), BINS)


def noise(count: int, seed: int, channels: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, SIZE, SIZE, generator=generator)


def measured(
    model: Denoiser, images: torch.Tensor, process: GaussianProcess = PROCESS
) -> dict[str, torch.Tensor]:
    state = calibrate(process, model, Precision.named(CPU, "float32"), images, 0, 200)
    assert state is not None
    return state


def calibrated(model: Denoiser, count: int) -> dict[str, torch.Tensor]:
    return measured(model, gaussian_images(count))


@functools.cache  # not while tests are collected, by every process
def best_state() -> dict[str, torch.Tensor]:
    return calibrated(best_denoiser, 3000)


def kernel(chain: Chain, kind: str | float = "calibrated") -> GaussianKernel:
    return PROCESS.reverse_kernel(kind, best_state(), chain)


# --- kernels ---


def test_bins_are_radii_and_blind_frequencies() -> None:
    """Distances from the constant, rounded; the constant alone, and with patches of p x p pixels
    p^2 frequencies alone.
    """
    assert frequency_bins(3, 3, 2).tolist() == [[3, 0, 1], [0, 0, 1], [1, 1, 2]]
    assert frequency_bins(3, 3, 400).tolist() == [[5, 0, 2], [0, 1, 3], [2, 3, 4]]
    for patch_size, alone in ((1, [0]), (2, [0, 7]), (4, [0, 4, 7])):
        bins = frequency_bins(8, 8, 48, patch_size)
        sizes = bins.flatten().bincount()
        assert (sizes > 0).all()
        assert (sizes[bins[alone][:, alone]] == 1).all()


def test_bins_and_shells_of_a_rectangle_are_of_lambda() -> None:
    """In 24 x 40 cells frequencies of equal n^2 + m^2 differ in lambda by a factor of 3, and alpha
    at a level with them.
    """
    rates = eigenvalues(24, 40)
    assert rates[5, 0] / rates[0, 5] > 2.7
    groups = Bins(frequency_bins(24, 40, 48)[None])
    for shell in range(len(groups.shell_sizes)):
        inside = rates[groups.shells[0] == shell]
        torch.testing.assert_close(inside, inside[:1].expand_as(inside), rtol=1e-12, atol=0)
    radii = rates.sqrt() * 40 / math.pi
    blind = groups.bins[0, 0, 0]
    for number in range(len(groups.sizes)):
        inside = radii[groups.bins[0] == number]
        assert number == blind or inside.max() - inside.min() <= 1.0001


def test_the_papers_noise_is_a_special_case(golden: Golden) -> None:
    """The original's trajectory with a = 0, b = 1, c = 0, v = delta^2, through the cosine basis."""
    noise, delta, process = golden["sampler_noise"], golden.settings["delta"], golden.process()
    bins = frequency_bins(*process.shape[1:], 48).expand(process.shape)
    ones = torch.ones(process.K, int(bins.max()) + 1, dtype=torch.float64)
    c = torch.zeros(process.K, process.num_channels, 4, 4)
    fit = Fit(0 * ones, ones, c, (delta**2 - process.sigma[1] ** 2) * ones)
    affine = GaussianKernel(process, "calibrated", process.chain, fit=fit, bins=bins)
    sample = reverse_process(process, golden.model, golden["init"], affine, lambda k: noise[k - 1])
    assert (sample - golden["sample"]).norm() < 1e-3 * golden["sample"].norm()


def test_terms_against_torch() -> None:
    """A term is a divergence of Gaussians, the reconstruction minus a log density, also where
    variances differ.
    """
    generator = torch.Generator().manual_seed(0)
    a, b, w = (torch.rand(6, generator=generator, dtype=torch.float64) + 0.1 for _ in range(3))
    p, q = torch.distributions.Normal(a, SIGMA), torch.distributions.Normal(b, w.sqrt())
    ones, errors = torch.ones(6), (a - b).square()
    divergence = torch.distributions.kl_divergence(p, q).sum()
    torch.testing.assert_close(gaussian_kl(errors, SIGMA**2, w, ones).sum(), divergence)
    torch.testing.assert_close(negative_log_density(errors, w, ones), -q.log_prob(a).sum())


# --- calibration ---


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("name", ["heat", "flow"])
def test_the_fit_of_few_images_by_hand(name: str, eta: float) -> None:
    """Ridge regression in every bin, offsets shrunk as James and Stein (1961) do, and errors for
    the degrees of freedom; frequencies beyond the 16th have no offset.
    """
    n, size = 9, 20
    process = heat_dissipation(DCTBlur(blur_schedule(3, 0.5, 2.0), size, size), 0.1, num_channels=1)
    if name == "flow":
        process = flow_matching(3, 2.0, (size, size), num_channels=1, predicts="x")
    generator = torch.Generator().manual_seed(0)
    u0, eps, other = torch.randn(3, n, 1, size, size, generator=generator)
    k, j = torch.tensor([3]), torch.tensor([1])
    z, _ = process.corrupt(u0, k, eps)
    F = 0.7 * process.blur(process.from_images(u0), k) + 0.3 * other + 0.05
    groups, sums = measured_bins(process, n), moments(process, u0, z, F, k.expand(n))
    levels = {3: level_state(process, groups, sums, 3, n)}
    calibration = Calibration(process, calibration_state(process, groups, levels, n))
    a, b, c, errors = (table[0] for table in calibration.fit(k, j, eta))

    r = process.step_coefficients(k, j, eta, process.blur.log_alpha)[1][0]
    z, y = dct2(z)[:, 0].double(), r * dct2(process.from_images(u0))[:, 0].double()
    q = r * dct2(F)[:, 0] if name == "flow" else z + dct2(F)[:, 0]
    has_offset = torch.zeros(size, size)
    has_offset[:16, :16] = 1
    means = [has_offset * part.mean(0) for part in (y, z, q)]
    y, z, q = (part - mean for part, mean in zip((y, z, q), means, strict=True))
    bins = frequency_bins(size, size, n)
    for i in range(int(bins.max()) + 1):
        inside = bins == i
        left, parts = (y - q)[:, inside].flatten(), torch.stack((z, q))[:, :, inside].flatten(1)
        squares = parts @ parts.T
        weights = torch.linalg.solve(squares + squares.diag().diag() / n, parts @ left)
        torch.testing.assert_close(torch.stack((a[i], b[i] - 1)), weights, rtol=1e-3, atol=1e-5)
        error = (left - weights @ parts).square().mean()
        offset = means[0] - a[i] * means[1] - b[i] * means[2]
        square, share = offset[inside].square().mean(), has_offset[inside].mean()
        uncertain = error / (n - 1) * share
        kept = (1 - uncertain / square).clamp(min=0) if square > 0 else torch.zeros(())
        expected = (kept * offset)[:16, :16][inside[:16, :16]]
        torch.testing.assert_close(c[0][inside[:16, :16]], expected, rtol=1e-3, atol=1e-5)
        freedom = 2 / (n * inside.sum())
        error = error * ((1 + freedom) / (1 - freedom) + share / n) + kept * uncertain
        torch.testing.assert_close(errors[i], error, rtol=1e-3, atol=1e-7)


def test_samples_have_the_power_spectrum_of_the_data() -> None:
    """Within the error of 2,000 samples, about the data's mean.

    A sample is the last mean: its variance is that of the data less what nobody can know of u_0
    from the last state.
    """
    affine, count = kernel(SKIPPING), 2000
    u_K = BLUR(gaussian_images(count, 5), torch.full((count,), K))
    u_K += affine.prior_std * noise(count, 0)
    samples = reverse_process(PROCESS, best_denoiser, u_K, affine, lambda k: noise(count, k))
    power = dct2(samples - MEAN).square().mean((0, 1))
    ratio = by_bin(power) / by_bin(VARIANCES - posterior_variance(BLUR, SKIPPING[-2], 0))
    assert ((ratio - 1).abs() < 0.16).all(), ratio


@pytest.mark.parametrize("chain", [ALL, SKIPPING, (K, 0)])
def test_bound_of_any_chain_is_the_closed_form(chain: Chain) -> None:
    """1/2 sum log(1 + E / sigma^2) for each step, 1/2 sum [log(2 pi E) + 1] for the last: expected
    and on new images.
    """
    pairs = list(itertools.pairwise(chain))
    expected = sum(
        0.5 * (1 + posterior_variance(BLUR, k, j) / SIGMA**2).log().sum() for k, j in pairs[:-1]
    )
    expected += 0.5 * ((2 * math.pi * posterior_variance(BLUR, chain[-2], 0)).log() + 1).sum()
    costs = Calibration(PROCESS, best_state()).costs(ALL, 1.0)
    of_measured = sum(costs[k, j].item() for k, j in pairs)
    assert of_measured == pytest.approx(expected.item(), abs=1.5)  # levels share images

    affine, u0 = kernel(chain), gaussian_images(400, 2)
    total = torch.zeros(400, dtype=torch.float64)
    for k, j in pairs:
        level = torch.full((400,), k)
        errors = PROCESS.errors(best_denoiser, u0, level, noise(400, k), affine)
        total += PROCESS.terms(errors, level, affine, last=j == 0)
    assert abs(total.mean() - expected) < 4 * total.std() / 20


def test_colour_is_luminance_and_chrominance() -> None:
    """Images whose chrominance varies a hundredth as much as their luminance: variances are the
    known ones of each plane.
    """
    process = heat_dissipation(BLUR, SIGMA, num_channels=3)
    power = VARIANCES * torch.tensor([1, 0.01, 0.01])[:, None, None]
    torch.testing.assert_close(LUMINANCE_CHROMINANCE @ LUMINANCE_CHROMINANCE.T, torch.eye(3))

    def denoiser(u: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        d_j, d_k = BLUR.alpha(k - 1).float(), BLUR.alpha(k).float()
        gain = d_j * d_k * power / (d_k**2 * power + SIGMA**2)
        u_hat = dct2(u, LUMINANCE_CHROMINANCE)
        return idct2(gain * u_hat, LUMINANCE_CHROMINANCE) - u

    images = idct2(noise(1000, 0, channels=3) * power.sqrt(), LUMINANCE_CHROMINANCE)
    sizes = bin_sums(torch.ones(SIZE, SIZE), BINS).repeat(3)
    affine = process.reverse_kernel("calibrated", measured(denoiser, images, process))
    for k in (2, 12, K):
        level = torch.full((300,), k)
        d_j, d_k = (BLUR.alpha(torch.tensor([j]))[0, 0] for j in (k - 1, k))
        expected = SIGMA**2 + d_j**2 * power * SIGMA**2 / (d_k**2 * power + SIGMA**2)
        ratio = affine.bin_variances(level)[0] / (bin_sums(expected, BINS).flatten() / sizes)
        assert ((ratio - 1).abs() < 5 * (2 / (1000 * sizes)).sqrt()).all()


def test_few_images_do_no_harm() -> None:
    """From twelve images the bound of new ones is still no worse than with isotropic noise; with
    one it is finite.
    """
    u0 = gaussian_images(400, 4)
    for count in (1, 12):
        state, total = calibrated(best_denoiser, count), {}
        for kind in (1.25 * SIGMA, "calibrated"):
            affine = PROCESS.reverse_kernel(kind, state)
            levels = torch.arange(2, K + 1).repeat(14)[:400]
            errors = PROCESS.errors(best_denoiser, u0, levels, noise(400, 0), affine)
            total[kind] = PROCESS.terms(errors, levels, affine).mean().item()
        assert math.isfinite(total["calibrated"])
        assert count == 1 or total["calibrated"] < total[1.25 * SIGMA], total


def test_dynamic_programming_finds_the_best_chain() -> None:
    """Against all chains of a small process."""
    costs = torch.rand(9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    costs[torch.arange(9)[:, None] <= torch.arange(9)] = math.inf
    for steps in range(1, 9):
        chains = [(8, *middle, 0) for middle in itertools.combinations(range(7, 0, -1), steps - 1)]
        totals = [sum(costs[k, j].item() for k, j in itertools.pairwise(c)) for c in chains]
        assert shortest_path(costs, 8, steps) == chains[np.argmin(totals)]


def test_what_was_not_measured_is_refused() -> None:
    """With what to run; what was measured for other images or levels is refused, too."""
    for kind in ("spectral", "calibrated"):
        with pytest.raises(ValueError, match=r"run python -m scripts\.tools\.calibrate"):
            PROCESS.reverse_kernel(kind, None)
    with pytest.raises(ValueError, match="skipping levels"):
        kernel(SKIPPING, 0.01)
    longer = DCTBlur(blur_schedule(K + 1, 0.5, 5.0), SIZE, SIZE)
    other = heat_dissipation(longer, SIGMA, num_channels=1)
    with pytest.raises(ValueError, match="calibration is of other levels or images"):
        other.reverse_kernel("calibrated", best_state())
