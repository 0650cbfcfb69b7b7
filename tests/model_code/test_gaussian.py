"""The Gaussian family: tables, steps, samples and bounds where they are known, for every preset."""

import itertools
import math
from typing import Any

import pytest
import torch

from model_code import build_process
from model_code.blur import Attenuation, DCTBlur, blur_schedule
from model_code.dct import dct2, idct2, mix
from model_code.elbo import log_probability
from model_code.gaussian import GaussianProcess
from model_code.presets import (
    blurring_diffusion,
    flow_matching,
    heat_dissipation,
)
from scripts.runtime.device import Precision
from scripts.sampling.calibration import calibrate
from scripts.sampling.reverse import heun, multistep, reverse_process
from tests.tiny import tiny_config

SIZE, K = 8, 40
CHAIN = (K, 33, 20, 19, 9, 2, 1, 0)
FLOAT32 = Precision.named(torch.device("cpu"), "float32")


def make(name: str, levels: int = K) -> GaussianProcess:
    size = (SIZE, SIZE)
    if name == "heat":
        return heat_dissipation(
            DCTBlur(blur_schedule(levels, 0.5, 4.0), *size), 0.05, num_channels=1
        )
    if name == "flow":
        return flow_matching(levels, 4.0, size, num_channels=1, predicts="x")
    predicts = "eps" if name == "eps" else "v"
    blur = 0.0 if name == "diffusion" else 4.0
    return blurring_diffusion(levels, blur, size, num_channels=1, predicts=predicts)


POSTERIOR = ("eps", "v", "diffusion", "flow")
ALL = ("heat", *POSTERIOR)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def level(k: int, count: int = 1) -> torch.Tensor:
    return torch.full((count,), k)


def alpha_sigma(process: GaussianProcess, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    return process.blur.log_alpha[k].exp(), process.sigma[k]


def coefficients(
    process: GaussianProcess, k: int, j: int, eta: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tables = process.step_coefficients(level(k), level(j), eta, process.blur.log_alpha)
    return tables[0][0], tables[1][0], tables[2][0]


def true_output(
    process: GaussianProcess, x: torch.Tensor, eps: torch.Tensor, k: torch.Tensor
) -> torch.Tensor:
    """The network's output that stands for x and eps (B, 1, H, W), at levels (B,) or (1,)."""
    alpha, sigma = process.blur.alpha(k), process.sigma_of(k)
    x_hat, eps_hat = dct2(x.double()), dct2(eps.double())
    next_mean = process.blur.alpha(process.next_level[k]) * x_hat - alpha * x_hat - sigma * eps_hat
    v = (alpha * eps_hat - sigma * x_hat) / (alpha**2 + sigma**2).sqrt()
    outputs = {"x": x_hat, "eps": eps_hat, "v": v, "next mean": next_mean}
    return idct2(outputs[process.predicts])


def images_and_noise(count: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Images u_0 and standard normal noise."""
    u0, eps = normal(2, count, 1, SIZE, SIZE)
    return u0.sigmoid(), eps


class GaussianData:
    """Images x whose DCT coefficients are independent normals, and the best network for them."""

    def __init__(self, process: GaussianProcess, gain: float = 1.0, offset: float = 0.0) -> None:
        """The network's output is multiplied by `gain` and moved by `offset`."""
        self.process, self.gain, self.offset = process, gain, offset
        n = torch.arange(SIZE, dtype=torch.float64)
        self.mean = torch.zeros(SIZE, SIZE, dtype=torch.float64)
        self.mean[0, 0], self.mean[1, 2] = -2.0, 0.7
        self.variance = 1 / (1 + n[:, None] ** 2 + n**2) ** 1.2  # most in low frequencies

    def draw(self, count: int, seed: int = 0) -> torch.Tensor:
        """Images u_0 (count, 1, H, W)."""
        x = idct2(self.mean + self.variance.sqrt() * normal(count, 1, SIZE, SIZE, seed=seed))
        return self.process.to_images(x).float()

    def posterior(self, z_hat: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance of x given z_k, coefficients, for levels (B,)."""
        alpha, sigma = self.process.blur.alpha(k), self.process.sigma_of(k)
        total = alpha**2 * self.variance + sigma**2
        mean = self.mean + alpha * self.variance / total * (z_hat - alpha * self.mean)
        return mean, self.variance * sigma**2 / total

    def __call__(self, z: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """The raw output that stands for E[x | z_k]."""
        z_hat = dct2(z.double())
        x, _ = self.posterior(z_hat, k)
        eps = (z_hat - self.process.blur.alpha(k) * x) / self.process.sigma_of(k)
        F = true_output(self.process, idct2(x), idct2(eps), k)
        return (self.gain * F + self.offset).float()


def within_errors(values: torch.Tensor, expected: torch.Tensor, sigmas: float = 5.0) -> bool:
    """Whether the mean over the first axis is as expected within standard errors everywhere."""
    error = values.std(0) / math.sqrt(len(values))
    return bool(((values.mean(0) - expected).abs() <= sigmas * error + 1e-9).all())


# --- tables ---


@pytest.mark.parametrize("k", [1, 7, 20, 40])
def test_tables_are_the_papers(k: int) -> None:
    """Blurring diffusion: log SNR -2 log tan(...) from 10 to -10; d = 0.999 exp(-lambda tau) +
    0.001 with sigma_B = max sin^2(pi t / 2). Flow matching: (1 - t) exp(-lambda (b t)^2 / 2), t.
    """
    t, n = k / K, torch.arange(SIZE, dtype=torch.float64)
    rates = math.pi**2 * (n[:, None] ** 2 + n**2) / SIZE**2
    first, last = math.atan(math.exp(-5)), math.atan(math.exp(5))
    log_snr = torch.tensor(-2 * math.log(math.tan(first + (last - first) * t))).double()
    sigma_B = 4.0 * math.sin(math.pi * t / 2) ** 2
    alpha, sigma = alpha_sigma(make("eps"), k)
    expected = (0.999 * (-rates * sigma_B**2 / 2).exp() + 0.001) * log_snr.sigmoid().sqrt()
    torch.testing.assert_close(alpha, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(sigma, (-log_snr).sigmoid().sqrt(), rtol=1e-5, atol=0)
    alpha, sigma = alpha_sigma(make("flow"), k)
    torch.testing.assert_close(alpha, (1 - t) * (-rates * (4 * t) ** 2 / 2).exp())
    assert sigma.item() == pytest.approx(t)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ALL)
def test_a_step_has_the_right_marginal(name: str, eta: float) -> None:
    """p alpha_k + r = alpha_j and p^2 sigma_k^2 + s^2 = sigma_j^2, also where alpha underflows;
    with eta = 1 p and s are those of the posterior, of z_k = (alpha_k / alpha_j) z_j + noise.
    """
    for process in (make(name), make(name, 1000)):
        for k, j in ((process.K, process.K - 1), (process.K, 3), (20, 19), (5, 1), (3, 0)):
            p, r, s = coefficients(process, k, j, eta)
            (alpha_k, sigma_k), (alpha_j, sigma_j) = (alpha_sigma(process, i) for i in (k, j))
            torch.testing.assert_close(p * alpha_k + r, alpha_j)
            torch.testing.assert_close(
                p**2 * sigma_k**2 + s**2, (sigma_j**2).expand_as(p), atol=1e-12, rtol=1e-9
            )
            if eta == 1 and name != "heat" and j > 0 and k < process.K:
                covariance = alpha_k / alpha_j * sigma_j**2
                torch.testing.assert_close(p, covariance / sigma_k**2)
                torch.testing.assert_close(s**2, sigma_j**2 - covariance**2 / sigma_k**2)
    process = flow_matching(K, 60.0, (SIZE, SIZE), num_channels=1, predicts="x")
    assert alpha_sigma(process, K - 2)[0][-1, -1] == 0
    for table in coefficients(process, K, K - 2, eta):
        assert table.isfinite().all()


# --- steps ---


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", POSTERIOR)
def test_the_mean_follows_from_what_the_network_says(name: str, eta: float) -> None:
    """Given the true x, eps or v the mean is p z + r x, and noise is filtered by s."""
    process = make(name)
    kernel = process.reverse_kernel("posterior", chain=CHAIN, eta=eta)
    assert kernel.label == ("posterior" if eta == 1 else f"eta_{eta:g}")
    u0, eps = images_and_noise()
    x = process.from_images(u0)
    x_hat = dct2(x).double()
    for k, j in itertools.pairwise(CHAIN[name == "eps" :]):  # from K errors grow 150,000 times
        z, _ = process.corrupt(u0, level(k), eps)
        F = true_output(process, x, eps, level(k))
        p, r, s = coefficients(process, k, j, eta)
        mean = dct2(kernel.mean(z, F, level(k))).double()
        torch.testing.assert_close(mean, p * dct2(z) + r * x_hat, atol=1e-3, rtol=1e-3)
        noise = dct2(kernel.noise(eps, k)).double()
        torch.testing.assert_close(noise, s * dct2(eps), atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_with_the_true_output_the_loss_is_0(name: str) -> None:
    """For every prediction; targets are the next image, x, or eps."""
    process, k = make(name), torch.tensor([1, K // 2, K])
    u0, eps = images_and_noise(3)
    z, target = process.corrupt(u0, k, eps)
    x = process.from_images(u0)
    F = true_output(process, x, eps, k)
    torch.testing.assert_close(process.predict(F, z, k), target, atol=2e-5, rtol=1e-5)
    expected = {"x": x, "next mean": process.blur(x, k - 1)}.get(process.predicts, eps)
    torch.testing.assert_close(target, expected)


@pytest.mark.parametrize("name", ["flow", "v", "diffusion"])
def test_errors_of_x_count_by_the_signal_to_noise_ratio_up_to_a_bound(name: str) -> None:
    """By what two outputs change in the target's estimate and in that of x, in the mean's
    coefficient.
    """
    process, k = make(name), torch.arange(1, K + 1)
    F = torch.ones(K, 1, SIZE, SIZE)
    of_target = process.predict(F, 0 * F, k) - process.predict(0 * F, 0 * F, k)
    of_x = process.estimate_coefficients(k)[1].expand(K, 1, SIZE, SIZE)[..., :1, :1]
    alpha, sigma = process.blur.alpha(k)[:, 0, 0, 0], process.sigma[k]
    signal = 1.0 if name == "flow" else alpha
    counts = (signal / sigma).square().clamp(max=5.0)
    weights = counts * (of_x.flatten() / of_target.double().mean((1, 2, 3))).square()
    found = process.level_weights(0.0)[1:].double()
    torch.testing.assert_close(found, weights / weights.mean(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", POSTERIOR)
def test_deterministic_steps_end_at_the_image(name: str) -> None:
    """DDIM keeps x and eps, and so ends at the image along any chain, whatever is drawn."""
    process = make(name)
    u0, eps = images_and_noise(2)
    x = process.from_images(u0)
    kernel = process.reverse_kernel("posterior", chain=CHAIN[1:], eta=0.0)
    z, _ = process.corrupt(u0, level(33, 2), eps)
    samplers = (reverse_process, heun) if name == "eps" else (reverse_process, heun, multistep)
    for sampler in samplers:
        end = sampler(
            process,
            lambda z, k: true_output(process, x, eps, k).float(),
            z,
            kernel,
            lambda k: normal(2, 1, SIZE, SIZE, seed=k),
        )
        torch.testing.assert_close(process.to_images(end), u0, atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", ["v", "diffusion", "flow"])
@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_where_estimates_agree_multistep_is_the_plain_step(name: str, eta: float) -> None:
    """With the same noise, from any level."""
    process = make(name)
    u0, eps = images_and_noise(2)
    x = process.from_images(u0)
    kernel = process.reverse_kernel("posterior", chain=CHAIN[1:], eta=eta)
    z, _ = process.corrupt(u0, level(33, 2), eps)

    def output(z: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        alpha, sigma = process.blur.alpha(k), process.sigma_of(k)
        noise = mix(1 / sigma, z, -alpha / sigma, x)
        return true_output(process, x, noise, k).float()

    def draw(k: int) -> torch.Tensor:
        return normal(2, 1, SIZE, SIZE, seed=k)

    states: dict[Any, dict[int, torch.Tensor]] = {reverse_process: {}, multistep: {}}
    for sampler, of_sampler in states.items():
        sampler(process, output, z, kernel, draw, of_sampler.__setitem__)
    assert len(states[multistep]) == len(kernel.chain) - 1
    plain, extrapolated = states.values()
    torch.testing.assert_close(plain, extrapolated, atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", ["v", "flow"])
@pytest.mark.parametrize("second", [multistep, heun])
def test_samplers_of_second_order(second: Any, name: str) -> None:
    """Against many steps on Gaussian data: half the step, a quarter of the error or less, and
    N network calls, of Heun's method 2 N - 1.
    """
    process = make(name, 960)
    data = GaussianData(process)
    # Not from K: the change of the first step from pure noise has no second order.
    z, _ = process.corrupt(data.draw(4), level(720, 4), normal(4, 1, SIZE, SIZE, seed=2))

    def run(sampler: object, steps: int) -> tuple[torch.Tensor, int]:
        calls = []

        def counted(u: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            calls.append(k)
            return data(u, k)

        chain = (*range(720, 120, -600 // steps), 120, 0)
        kernel = process.reverse_kernel("posterior", chain=chain, eta=0.0)
        end = sampler(process, counted, z, kernel, lambda k: z)  # type: ignore[operator]
        return end, len(calls)

    exact, _ = run(heun, 120)
    errors = []
    for sampler, steps in ((reverse_process, 10), (second, 10), (second, 20)):
        found, calls = run(sampler, steps)
        errors.append((found - exact).norm().item())
        assert calls == (2 * steps + 1 if sampler is heun else steps + 1)
    assert errors[1] < errors[0] / 3, errors
    assert errors[2] < errors[1] / 2.5, errors


def test_multistep_extrapolates_only_so_far_beyond_a_short_step() -> None:
    """An extrapolation multiplies the fresh noise in the last estimate: without a bound these
    samples vary several times as much as the data.
    """
    process = make("flow", 100)
    data = GaussianData(process)
    kernel = process.reverse_kernel(chain=(100, 80, 60, 59, 20, 8, 0), eta=1.0)
    variances = []
    for sampler in (reverse_process, multistep):
        states = sampler(
            process,
            data,
            normal(400, 1, SIZE, SIZE),
            kernel,
            lambda k: normal(400, 1, SIZE, SIZE, seed=k),
        )
        variances.append((dct2(states.double()) - data.mean).square().mean().item())
    assert variances[0] < variances[1] < data.variance.mean().item()


def test_samplers_pass_levels_without_signal() -> None:
    """Where alpha is 0 at two levels, too."""
    alpha = torch.tensor([1.0, 0.8, 0.3, 0.0, 0.0], dtype=torch.float64)
    log_alpha = alpha.log()[:, None, None].expand(-1, SIZE, SIZE).clone()
    sigma = torch.arange(5, dtype=torch.float64) / 4
    process = GaussianProcess(Attenuation(log_alpha), sigma, num_channels=1, predicts="x")
    u0 = normal(1, 1, SIZE, SIZE)
    for sampler in (reverse_process, multistep):
        end = sampler(
            process,
            lambda z, k: u0,
            normal(1, 1, SIZE, SIZE, seed=1),
            process.reverse_kernel(),
            lambda k: normal(1, 1, SIZE, SIZE, seed=k),
        )
        torch.testing.assert_close(end, u0)


def test_without_blur_it_is_ddpm() -> None:
    """Posterior mean and variance of Ho et al. (2020), equations 7 and 11, in terms of beta."""
    process = blurring_diffusion(K, 0.0, (SIZE, SIZE), num_channels=1, predicts="eps")
    kernel = process.reverse_kernel()
    u0, eps = images_and_noise()
    for t in (2, 10, K):
        bar, before = (alpha_sigma(process, i)[0][0, 0] ** 2 for i in (t, t - 1))
        beta = 1 - bar / before
        z, _ = process.corrupt(u0, level(t), eps)
        expected = (z - beta / (1 - bar).sqrt() * eps) / (1 - beta).sqrt()
        mean = kernel.mean(z, eps, level(t))
        torch.testing.assert_close(mean, expected.float(), atol=2e-5, rtol=1e-4)
        variance = (1 - before) / (1 - bar) * beta
        noise = kernel.noise(eps, t)
        torch.testing.assert_close(noise, (variance.sqrt() * eps).float(), atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "eta"), [("eps", 1.0), ("v", 0.0), ("diffusion", 1.0), ("flow", 0.0), ("flow", 1.0)]
)
def test_samples_have_the_spectrum_of_the_data(name: str, eta: float) -> None:
    """Samples have the moments that so many steps give, and many steps give those of the data."""
    count = 1000
    for process in (make(name, 1000), make(name)):
        data = GaussianData(process)
        kernel = process.reverse_kernel("posterior", eta=eta)
        mean, variance = torch.zeros(SIZE, SIZE).double(), torch.ones(SIZE, SIZE).double()
        for k, j in itertools.pairwise(process.chain):
            p, r, s = coefficients(process, k, j, eta)
            zero = data.posterior(torch.zeros(1).double(), level(k))[0][0, 0]
            slope = p + r * (data.posterior(torch.ones(1).double(), level(k))[0][0, 0] - zero)
            mean, variance = r * zero + slope * mean, slope**2 * variance + s**2
        if process.K == 1000:
            torch.testing.assert_close(mean, data.mean, atol=0.02, rtol=0)
            torch.testing.assert_close(variance, data.variance, rtol=0.08, atol=1e-3)
    generator = torch.Generator().manual_seed(3)
    z_K = torch.randn(count, 1, SIZE, SIZE, generator=generator)
    draw = lambda k: torch.randn(z_K.shape, generator=generator)  # noqa: E731
    found = dct2(reverse_process(process, data, z_K, kernel, draw).double())[:, 0]
    assert within_errors(found, mean)
    assert within_errors((found - mean) ** 2, variance)


# --- calibration ---


@pytest.mark.parametrize("name", ALL)
def test_calibration_corrects_a_network(name: str) -> None:
    """For an output that is off by a factor and an offset: mean and variance of r x given z are the
    known ones for any pair of levels and any eta, and the bound is nearly that of the best network.
    """
    process = make(name)
    good, bad = GaussianData(process), GaussianData(process, 0.8, 0.02)
    state = calibrate(process, bad, FLOAT32, good.draw(1500, 7), 0, 500)
    u0 = good.draw(300, 8)
    pairs = [(20, 19), (9, 0)]
    if name != "eps":  # its estimate of x at 33 is so far off that shrinking to it shows
        pairs.append((33, 9))
    for (k, j), eta in itertools.product(pairs, (0.0, 1.0)):
        kernel = process.reverse_kernel("calibrated", state, (k, j) if j == 0 else (k, j, 0), eta)
        assert kernel.label == ("calibrated" if eta == 1 else "calibrated_eta_0")
        eps = normal(300, 1, SIZE, SIZE, seed=k)
        z, _ = process.corrupt(u0, level(k, 300), eps)
        p, r, s = coefficients(process, k, j, eta)
        x, unknown = good.posterior(dct2(z.double()), level(k))
        unknown = unknown[0, 0]
        found = dct2(kernel.mean(z, bad(z, level(k, 300)), level(k)).double())
        off = (found - p * dct2(z.double()) - r * x).square().mean((0, 1))
        assert (off <= 0.1 * r**2 * unknown + 1e-6).all(), (k, j, off / (r**2 * unknown))
        expected = (r**2 * unknown).sum()
        measured = (kernel.variance(level(k))[0, 0] - s**2).sum()
        torch.testing.assert_close(measured, expected, rtol=0.1, atol=1e-6)

    plain = process.sampling_noises[1]
    chain = process.chain if name == "heat" else CHAIN

    def term(network: GaussianData, kind: str) -> float:
        kernel = process.reverse_kernel(kind, state, chain, 1.0)
        total = 0.0
        for k in CHAIN[1:-1]:
            eps = normal(300, 1, SIZE, SIZE, seed=k)
            errors = process.errors(network, u0.clamp(0, 1), level(k, 300), eps, kernel)
            total += process.terms(errors, level(k, 300), kernel).mean().item()
        return total

    assert term(bad, "calibrated") < term(bad, "spectral") < term(bad, plain)
    assert term(bad, "calibrated") < term(good, plain)
    best = process.best_chain(state, 6, None)
    assert (len(best), best[0], best[-1]) == (7, K, 0)


# --- bound ---


@pytest.mark.parametrize("name", POSTERIOR)
def test_bound_of_gaussian_data_is_the_closed_form(name: str) -> None:
    """Means differ by r times the error of x, whose variance given z is known."""
    process, count = make(name), 4000
    data, kernel = GaussianData(process), process.reverse_kernel(chain=CHAIN, eta=1.0)
    u0, prior = data.draw(count, 4), process.build_prior([])
    alpha, sigma = alpha_sigma(process, K)
    second = data.variance + data.mean**2
    expected = 0.5 * (alpha**2 * second + sigma**2 - 1 - 2 * sigma.log()).sum()
    summary = process.prior_summary(u0, prior)
    assert within_errors(process.prior_term(summary, prior, kernel)[:, None], expected)
    assert process.bound_levels(kernel) == sorted(CHAIN[:-2])
    for k, j in itertools.pairwise(CHAIN[:-1]):
        _, r, s = coefficients(process, k, j, 1.0)
        unknown = data.posterior(torch.zeros(1).double(), level(k))[1][0, 0]
        eps = normal(count, 1, SIZE, SIZE, seed=k)
        errors = process.errors(data, u0, level(k, count), eps, kernel)
        terms = process.terms(errors, level(k, count), kernel)
        assert within_errors(terms[:, None], 0.5 * (r**2 * unknown / s**2).sum())


def test_the_last_step_is_a_distribution_over_256_values() -> None:
    """Probabilities sum to 1, whatever the estimate; far from it they are tiny, but not 0."""
    x = torch.linspace(-1, 1, 256, dtype=torch.float64)
    std = torch.tensor(0.02, dtype=torch.float64)
    for mean in (-1.2, -1.0, 0.0013, 0.7, 1.0):
        log_p = log_probability(x, torch.tensor(mean), std)
        assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-12)
        assert log_p.isfinite().all()
    process = make("eps")
    u0, eps = torch.full((1, 1, SIZE, SIZE), 100 / 255), normal(1, 1, SIZE, SIZE)
    kernel = process.reverse_kernel()
    errors = process.errors(lambda z, k: eps, u0, level(1), eps, kernel)
    alpha, sigma = alpha_sigma(process, 1)
    nearest = math.erf(1 / 255 / ((sigma / alpha[0, 0]).item() * math.sqrt(2)))
    found = process.terms(errors, level(1), kernel, last=True).item()
    assert found == pytest.approx(-(SIZE**2) * math.log(nearest), rel=1e-3)


def test_what_cannot_be_is_refused() -> None:
    process = make("flow")
    for kind, message in ((0.01, "use --eta, not a number"), ("isotropic", "must be one of auto")):
        with pytest.raises(ValueError, match=message):
            process.reverse_kernel(kind)
    with pytest.raises(ValueError, match=r"run python -m scripts\.tools\.calibrate"):
        process.best_chain(None, 5, None)
    with pytest.raises(ValueError, match=r"--eta=0: the bound is infinite"):
        process.bound_levels(process.reverse_kernel())
    assert process.bound_levels(process.reverse_kernel(eta=0.5))
    with pytest.raises(ValueError, match="needs the calibrated kernel"):
        make("heat").reverse_kernel(eta=0.5)


@pytest.mark.parametrize("name", ALL)
def test_levels_may_be_mixed_in_a_batch(name: str) -> None:
    """Errors of an image do not depend on the levels of the others, k = 1 among them."""
    process = make(name)
    data, kernel = GaussianData(process), process.reverse_kernel(eta=1.0)
    u0, eps, k = data.draw(3, 5).clamp(0, 1), normal(3, 1, SIZE, SIZE), torch.tensor([1, 2, K])
    together = process.errors(data, u0, k, eps, kernel)
    rows = [slice(i, i + 1) for i in range(3)]
    alone = torch.cat([process.errors(data, u0[i], k[i], eps[i], kernel) for i in rows])
    assert together.isfinite().all()
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_transforms_are_exact_under_autocast(name: str) -> None:
    """Mixed precision is the network's affair: in bfloat16 the transforms would lose the image."""
    process = make(name)
    u0, eps = images_and_noise(2)
    k = torch.tensor([1, K])
    z, _ = process.corrupt(u0, k, eps)
    mean = process.reverse_kernel().mean(z, eps, k)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(process.corrupt(u0, k, eps)[0], z)
        assert torch.equal(process.reverse_kernel().mean(z, eps, k), mean)


@pytest.mark.parametrize(
    ("process", "key", "value"),
    [
        ("heat", "blur_sigma_max", 0.1),
        ("heat", "sampling_noise", "posterior"),
        ("blurring_diffusion", "blur_sigma_max", -1.0),
        ("flow_matching", "sampling_noise", "isotropic"),
        ("melting", "process", "melting"),
    ],
)
def test_processes_check_their_settings(process: str, key: str, value: object) -> None:
    """Each its own; the message names the key."""
    config = tiny_config(model__process=process, model__sampling_noise="auto")
    config.model[key] = value
    with pytest.raises(ValueError, match=rf"config\.model\.{key} = '?{value}'?: must be"):
        build_process(config)
