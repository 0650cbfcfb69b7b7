"""One family of processes: Gaussian, and diagonal in the cosine basis.

In each coefficient of an image x, u_0 in a range of its own, q(z_k | x) = N(alpha_k x, sigma_k^2).
Heat dissipation, blurring diffusion, Gaussian diffusion and flow matching are settings of this, see
`presets.py`; kernels of steps back are in `kernels.py`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from model_code import elbo
from model_code.blur import Attenuation
from model_code.calibration import Calibration
from model_code.dct import dct2, mix
from model_code.kernels import GaussianKernel, isotropic
from model_code.prior import Prior, PriorBank, StandardNormal
from model_code.process import CalibrationState, Chain, Denoiser, Process, full_chain, next_levels
from model_code.spectrum import bin_sums

MAX_WEIGHT = 5.0
"""gamma of Min-SNR weighting (Hang et al., ICCV 2023): what errors of x count for at most."""
CALIBRATE = "run python -m scripts.tools.calibrate, or leave --delta, --eta and --steps out"


@dataclass(eq=False)
class GaussianProcess(Process):
    """Tables alpha and sigma, what the network predicts, the noise of a step, the prior.

    A reverse step from k to j adds fresh noise s = eta s_1 (Song et al., 2021, in each
    coefficient): q_s(z_j | z_k, x) = N(p z_k + r x, s^2), p = sqrt(sigma_j^2 - s^2) / sigma_k and
    r = alpha_j - p alpha_k, has the right marginal at j for every s from 0 to sigma_j.
    """

    blur: Attenuation
    """A_k, images at level k without noise; A_0 = 1."""
    sigma: Tensor
    """float64 (K + 1,), 0 first."""
    num_channels: int
    predicts: Literal["next mean", "x", "eps", "v"]
    """What the network's output F stands for: u_k + F is the next mean, F is the image x, eps, or
    in each coefficient v = (alpha eps - sigma x) / sqrt(alpha^2 + sigma^2).
    """
    image_range: tuple[float, float] = (-1.0, 1.0)
    """Of x."""
    marginal_noise: bool = False
    """s_1 is sigma_j, which must be the same at all levels, rather than that of the posterior
    q(z_j | z_k, x).
    """
    eta: float = 1.0
    """By default: 1 is ancestral sampling, 0 deterministic."""
    delta: float = 0.0
    """The default of isotropic kernels, for a network that predicts the next mean."""
    prior_of_images: bool = False
    """The prior is that of blurred training images, rather than N(0, I)."""
    discrete: bool = True
    """The bound is on the probability of 8-bit images, not on the density of dequantised ones."""
    level_scale: Tensor | None = None
    """float64 (K + 1,), powers of which weight the loss of levels."""
    patch_size: int = 1
    """Of the network, which is blind to a few frequencies."""
    protocol: str = "paper"
    chain: Chain = ()
    summary: str = ""
    """For a person."""

    def __post_init__(self) -> None:
        self.K = self.blur.K
        self.shape = (self.num_channels, *self.blur.log_alpha.shape[1:])
        self.chain = self.chain or full_chain(self.K)
        self.next_level = next_levels(self.chain, self.K)
        self.of_next_mean = self.measures_calibration = self.predicts == "next mean"
        plain = "isotropic" if self.of_next_mean else "posterior"
        self.sampling_noises = ("auto", plain, "spectral", "calibrated")

    def __str__(self) -> str:
        return f"{super().__str__()}, {self.summary}"

    # --- forward ---

    def corrupt(self, u0: Tensor, k: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """z_k = A_k x + sigma_k eps, and the target: the next mean A_j x, x, or eps, also for v."""
        x, sigma = self.from_images(u0), self.sigma_of(k).float()
        if self.of_next_mean:
            target, mean = self.blur.at_levels(x, self.next_level[k], k)
            return mean + sigma * eps, target
        z = self.blur(x, k) + sigma * eps
        return z, x if self.predicts == "x" else eps

    def predict(self, F: Tensor, u_k: Tensor, k: Tensor) -> Tensor:
        """Return the estimate of the target of `corrupt`."""
        F, sigma = F.float(), self.sigma_of(k)
        if self.of_next_mean:
            return u_k + F
        if self.predicts in ("x", "eps"):
            return F
        alpha = self.blur.alpha(k)
        of_z, of_F = self.estimate_coefficients(k)  # of x; eps is (z - alpha x) / sigma
        return mix((1 - alpha * of_z) / sigma, u_k, -alpha * of_F / sigma, F)

    def sigma_of(self, k: Tensor) -> Tensor:
        """sigma_k for levels (B,): float64 (B, 1, 1, 1)."""
        return self.sigma[k][:, None, None, None]

    def from_images(self, u0: Tensor) -> Tensor:
        """x, in which the process is Gaussian, from images in [0, 1]."""
        low, high = self.image_range
        return low + (high - low) * u0.float()

    def to_images(self, state: Tensor) -> Tensor:
        """Apply the inverse of `from_images`."""
        low, high = self.image_range
        return (state - low) / (high - low)

    def level_weights(self, power: float) -> Tensor:
        """Powers of the level's scale: errors of heat fall with the blur, about as 1 / sigma_B.

        Without a scale those of a loss in which squared errors of x count min(1 / sigma_k^2,
        gamma), or alpha_k^2 / sigma_k^2 for a network that predicts v, alpha_k being that of an
        image's mean. Without a bound levels with hardly any noise are all that is learnt in a
        short training. Networks that predict eps have the plain loss of eps.
        """
        square = self.sigma[1:] ** 2
        if self.level_scale is not None:
            of_levels = self.level_scale[1:] ** power
        elif self.predicts == "x":
            of_levels = (1 / square).clamp(max=MAX_WEIGHT)
        elif self.predicts == "v":
            snr = (2 * self.blur.log_alpha[1:, 0, 0]).exp() / square
            of_levels = (MAX_WEIGHT / snr).clamp(max=1)  # of an error in eps
        else:
            return super().level_weights(power)
        weights = torch.cat([torch.zeros(1), of_levels])
        return (weights / weights[list(self.training_levels)].mean()).float()

    # --- reverse ---

    def step_coefficients(
        self, k: Tensor, j: Tensor, eta: float, log_alpha: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """p, r and s of q_s(z_j | z_k, x) = N(p z_k + r x, s^2) for levels k > j (B,).

        Float64 (B, ...), of the coefficients whose log alpha is given, (K + 1, ...). Ratios are
        differences of logarithms, as alpha underflows.
        """
        ratio = (log_alpha[k] - log_alpha[j]).exp().nan_to_num(0.0)  # both alphas may be 0
        shape = (-1,) + (1,) * (ratio.dim() - 1)
        sigma = self.sigma.to(ratio.device)
        sigma_k, sigma_j = sigma[k].view(shape), sigma[j].view(shape)
        s = eta * sigma_j.expand_as(ratio)
        if not self.marginal_noise:
            s = s * (1 - (ratio * sigma_j / sigma_k) ** 2).clamp(min=0).sqrt()
        p = (sigma_j**2 - s**2).clamp(min=0).sqrt() / sigma_k
        return p, log_alpha[j].exp() * (1 - p * ratio), s

    def estimate_coefficients(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factors of z_k and F in the network's estimate of x, or of the next mean:
        float64.
        """
        one = torch.ones(1, dtype=torch.float64, device=k.device)
        if self.of_next_mean:
            return one, one
        if self.predicts == "x":
            return 0 * one, one
        alpha, sigma = self.blur.alpha(k), self.sigma_of(k)
        if self.predicts == "eps":
            return 1 / alpha, -sigma / alpha
        assert self.predicts == "v"
        square = alpha**2 + sigma**2
        return alpha / square, -sigma / square.sqrt()

    def change(self, F: Tensor, z: Tensor, at: int, k: int, j: int) -> Tensor:
        """Return what a deterministic step k -> j adds to z_k, by the network's output F for z at a
        level.

        (alpha_j - alpha_k) x + (sigma_j - sigma_k) eps with the x and eps that F implies. At the
        level k itself it is (p - 1) z + r x with eta = 0.
        """
        of_z, of_F = self.estimate_coefficients(torch.tensor([at], device=z.device))
        alpha_at, alpha_k, alpha_j = self.blur.log_alpha[[at, k, j]].exp()
        sigma_at, sigma_k, sigma_j = self.sigma[[at, k, j]]
        of_eps = (sigma_j - sigma_k) / sigma_at  # eps is (z - alpha x) / sigma
        of_x = alpha_j - alpha_k - of_eps * alpha_at
        return mix(of_eps + of_x * of_z, z, of_x * of_F, F.float())

    def reverse_kernel(
        self,
        kind: float | str = "auto",
        calibration: CalibrationState = None,
        chain: Chain | None = None,
        eta: float | None = None,
    ) -> GaussianKernel:
        """Return a standard deviation (heat dissipation only), "isotropic" or "posterior",
        "spectral" or "calibrated"; "auto" is calibrated for heat dissipation where that was
        measured.
        """
        chain = chain or self.chain
        if kind == "auto":
            measured = self.of_next_mean and "bins" in (calibration or {})
            kind = self.sampling_noises[1]
            if measured and self.protocol == "paper":
                kind = "calibrated"
        if isinstance(kind, str) and kind not in self.sampling_noises:
            raise ValueError(f"must be one of {', '.join(self.sampling_noises)}")
        if self.of_next_mean and kind != "calibrated":
            if eta not in (None, 1):
                raise ValueError(f"keeping noise needs the calibrated kernel: {CALIBRATE}")
            if chain != self.chain[-len(chain) :]:
                needed = "skipping levels that were trained needs the calibrated kernel"
                raise ValueError(f"{needed}: {CALIBRATE}")
        eta = self.eta if eta is None else eta
        if kind == "isotropic":
            kind = self.delta
        if kind == "posterior":
            return GaussianKernel(self, kind, chain, eta)
        if isinstance(kind, str):
            return self._calibration(calibration).kernel(kind, chain, eta)
        if not self.of_next_mean:
            raise ValueError("its sampling noise is that of its posterior: use --eta, not a number")
        return isotropic(self, kind, chain)

    def best_chain(self, calibration: CalibrationState, steps: int, eta: float | None) -> Chain:
        """By the expected terms of the bound, of ancestral sampling if it is deterministic."""
        eta = self.eta if eta is None else eta
        return self._calibration(calibration).best_chain(self.chain, steps, eta or 1.0)

    def _calibration(self, state: CalibrationState) -> Calibration:
        if state is None or "bins" not in state:  # earlier versions measured the noise alone
            raise ValueError(f"nothing was measured for this checkpoint: {CALIBRATE}")
        return Calibration(self, state)

    # --- prior ---

    def build_prior(self, batches: Iterable[Tensor]) -> Prior:
        """Return the bank of blurred training images, or N(0, I), whatever the images."""
        if self.prior_of_images:
            return PriorBank.from_batches(batches, self.blur)
        return StandardNormal(self.shape)

    def prior_from_state(self, state: Mapping[str, Tensor]) -> Prior:
        """That in a checkpoint."""
        if not self.prior_of_images:
            return StandardNormal(self.shape)
        bank = PriorBank(**state)
        shape = (bank.coefficients.shape[1], *bank.basis.shape[1:])
        if shape != self.shape:
            expected = f"where this configuration's are {self.shape}"
            raise ValueError(f"its prior bank is of images {shape}, {expected}")
        return bank

    # --- bound ---

    def bound_levels(self, kernel: GaussianKernel) -> Sequence[int]:
        """Levels k, ascending, whose KL terms are summed, besides the prior's and the last step's.

        The release counts k = 1 twice and leaves out k = K. Raises ValueError, naming the flag, for
        steps without noise, whose bound is infinite.
        """
        if 0 in (kernel.delta, kernel.eta):
            flag = "--eta=0" if kernel.eta == 0 else "--delta=0"
            raise ValueError(f"{flag}: the bound is infinite without noise; must be above 0")
        last = self.blur.log_alpha[kernel.chain[-2]]
        if kernel.delta is None and not kernel.fit and last.max() == -math.inf:
            advice = "take more, or --delta=calibrated"
            raise ValueError(f"--steps: the last step starts at pure noise; {advice}")
        as_released = self.protocol == "released" and kernel.chain == full_chain(self.K)
        return range(1, self.K) if as_released else sorted(kernel.chain[:-2])

    def errors(
        self, denoise: Denoiser, u0: Tensor, k: Tensor, eps: Tensor, kernel: GaussianKernel
    ) -> Tensor:
        """Return what `terms` needs of the network at levels k (B,), for kernels that differ in
        delta alone.

        Where the fresh noise is the same in all coefficients (heat), squared errors of its mean p
        z_k + y, in place of p z_k + r x, summed over bins: float64 (B, R). Else the terms, (B, 1).
        """
        z, _ = self.corrupt(u0, k, eps)
        mean, x = kernel.mean(z, denoise(z, k), k), self.from_images(u0)
        p, r, s = kernel.coefficients(k)
        z_hat, x_hat, mean_hat = (dct2(u, kernel.planes) for u in (z, x, mean))
        squares = (p * z_hat + r * x_hat - mean_hat).double().square()
        if self.marginal_noise:
            return bin_sums(squares, kernel.bins)
        terms = elbo.gaussian_kl(squares, s**2, kernel.variance(k)).sum((1, 2, 3))
        last = kernel.next_level[k] == 0
        if last.any():
            std = kernel.pixel_variance(k[last]).sqrt()
            terms[last] = -elbo.log_probability(x[last], mean[last], std).sum((1, 2, 3))
        return terms[:, None]

    def terms(
        self, errors: Tensor, k: Tensor, kernel: GaussianKernel, *, last: bool = False
    ) -> Tensor:
        """KL(q_s(z_j | z_k, x) || p(z_j | z_k)) at levels k (B,); for the `last` step -log p(u_0 |
        z_k): nats, float64 (B,).
        """
        if not self.marginal_noise:
            return errors[:, 0]
        variances = kernel.bin_variances(k).to(errors.device)
        if last:
            return elbo.negative_log_density(errors, variances, kernel.sizes)
        variance = (kernel.eta * self.sigma[-1].item()) ** 2
        return elbo.gaussian_kl(errors, variance, variances, kernel.sizes).sum(1)

    def prior_summary(self, u0: Tensor, prior: Prior) -> Tensor:
        """Return what `prior_term` needs of images: A_K u_0 in the bank's basis (B, C, F), or the
        KL divergence of q(z_K | x) from N(0, I) in nats, float64 (B,).
        """
        if isinstance(prior, PriorBank):
            return prior.project(u0)
        alpha, square = self.blur.log_alpha[-1].exp().to(u0.device), self.sigma[-1].item() ** 2
        means = alpha * dct2(self.from_images(u0))
        return 0.5 * (means**2 + square - 1 - math.log(square)).sum((1, 2, 3))

    def prior_term(self, summary: Tensor, prior: Prior, kernel: GaussianKernel) -> Tensor:
        """Return the paper's bound on L_K, by convexity in the mixture; exact for N(0, I).

        Float64 (B,).
        """
        if not isinstance(prior, PriorBank):
            return summary
        sigma, delta = self.sigma[-1].item(), kernel.prior_std
        return elbo.prior_kl_bound(summary, prior, sigma, delta)
