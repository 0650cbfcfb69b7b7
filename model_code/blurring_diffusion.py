"""Blurring diffusion (Hoogeboom and Salimans, ICLR 2023, arXiv 2209.05557): heat dissipation and Gaussian diffusion in one.

In the cosine basis z_k = alpha_k x + sigma_k eps, where alpha_k falls fastest at high frequencies and images x are in [-1, 1].
Every frequency is a variance-preserving diffusion with a schedule of its own, so that posteriors are Gaussian and known. The
network predicts eps in pixels. Without blur (model.blur_sigma_max = 0) this is DDPM (Ho et al., 2020) with a cosine schedule.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from ml_collections import ConfigDict

from model_code.dct import Basis, eigenvalues
from model_code.kernels import Chain, PosteriorKernel, ReverseKernel
from model_code.prior import Prior, StandardNormal
from model_code.process import Denoiser, Likelihood, Measured, Process, configured_chain, full_chain, require_sampling_noise

HALF_BIN = 1 / 255
"""Half the distance of neighbouring 8-bit values in [-1, 1]."""


class BlurringDiffusion(Process, Likelihood):
    """Levels k = 1..K are the times t = k / K; level 0 is the image itself (alpha_0 = 1, sigma_0 = 0)."""

    MIN_SCALE = 0.001
    """d_min: what blur leaves of the highest frequencies, so that they can be divided by alpha."""
    LOG_SNR_MAX, LOG_SNR_MIN = 10.0, -10.0
    """log(a_t^2 / sigma_t^2) at t = 0 and t = 1."""
    discrete = True
    reads = frozenset({"model.blur_sigma_max"})

    def __init__(self, K: int, blur_sigma_max: float, num_channels: int, image_size: int, chain: Chain | None = None) -> None:
        """blur_sigma_max: the blur's length scale at level K, in pixels."""
        super().__init__()
        self.K, self.blur_sigma_max, self.shape = K, blur_sigma_max, (num_channels, image_size, image_size)
        self.chain = chain or full_chain(K)
        t = torch.arange(K + 1, dtype=torch.float64) / K
        first, last = (math.atan(math.exp(-log_snr / 2)) for log_snr in (self.LOG_SNR_MAX, self.LOG_SNR_MIN))
        angle = first + (last - first) * t  # log SNR = -2 log tan(angle), so that a^2 = sigmoid(log SNR) = cos^2(angle)
        angle[0] = 0
        sigma_B = blur_sigma_max * (math.pi * t / 2).sin() ** 2
        # Derived tables, not weights: they stay out of the state dict.
        for name, table in {
            "a": angle.cos(),
            "sigma": angle.sin(),
            "dissipation_time": sigma_B**2 / 2,
            "eigenvalues": eigenvalues(image_size, image_size),
        }.items():
            self.register_buffer(name, table, persistent=False)
        self.basis = Basis(image_size, image_size)

    a: torch.Tensor
    sigma: torch.Tensor
    dissipation_time: torch.Tensor
    eigenvalues: torch.Tensor

    @classmethod
    def from_config(cls, config: ConfigDict) -> "BlurringDiffusion":
        """As config.model and config.data say. Raises ValueError for settings that cannot be."""
        require_sampling_noise(config, "auto", "posterior")
        if config.model.blur_sigma_max < 0:
            raise ValueError(f"config.model.blur_sigma_max = {config.model.blur_sigma_max}: must be at least 0")
        data, chain = config.data, configured_chain(config)
        return cls(config.model.K, config.model.blur_sigma_max, data.num_channels, data.image_size, chain)

    def extra_repr(self) -> str:
        """Levels and blur."""
        return f"{super().extra_repr()}, sigma_B up to {self.blur_sigma_max:g} pixels, cosine schedule"

    def scaling(self, k: torch.Tensor) -> torch.Tensor:
        """d_k, what the corruption does to each frequency apart from noise, for int64 levels k (B,): float64 (B, 1, H, W).

        1 at k = 0, positive and falling in k.
        """
        decay = torch.exp(-self.dissipation_time[k][:, None, None, None] * self.eigenvalues)
        return (1 - self.MIN_SCALE) * decay + self.MIN_SCALE

    def alpha_sigma(self, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """alpha_k = a_k d_k, float64 (B, 1, H, W), and sigma_k, float64 (B, 1, 1, 1)."""
        a, sigma = (table[k][:, None, None, None] for table in (self.a, self.sigma))
        return a * self.scaling(k), sigma

    def corrupt(self, u0: torch.Tensor, k: torch.Tensor, eps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """z_k = alpha_k x + sigma_k eps, alpha_k acting on frequencies, and the target eps."""
        alpha, sigma = self.alpha_sigma(k)
        x = 2 * u0.float() - 1
        return self.basis.images(alpha.float() * self.basis.coefficients(x)) + sigma.float() * eps, eps

    def predict(self, model: Denoiser, u_k: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """The network's estimate of eps."""
        return model(u_k, k).float()

    def to_images(self, state: torch.Tensor) -> torch.Tensor:
        """From [-1, 1] to [0, 1]."""
        return (state + 1) / 2

    def build_prior(self, batches: Iterable[torch.Tensor]) -> StandardNormal:
        """N(0, I), whatever the images."""
        return StandardNormal(self.shape)

    def prior_from_state(self, state: Mapping[str, torch.Tensor]) -> StandardNormal:
        """N(0, I)."""
        return StandardNormal(self.shape)

    def sampling_noise(
        self, kind: float | str, measured: Measured, chain: Chain | None = None, eta: float | None = None
    ) -> PosteriorKernel:
        """The posterior's, with `eta` times its standard deviation (default 1). Raises ValueError for any other."""
        if kind not in ("auto", "posterior"):
            raise ValueError("this process's sampling noise is that of its posterior: leave --delta out, or use --eta")
        return PosteriorKernel(self.alpha_sigma, self.K, self.basis, chain or self.chain, 1.0 if eta is None else eta)

    def require_bound(self, kernel: ReverseKernel) -> None:
        """Other variances than the posterior's have another bound, which is not here."""
        if isinstance(kernel, PosteriorKernel) and kernel.eta != 1:
            raise ValueError(f"--eta={kernel.eta:g}: there is a bound for ancestral sampling only, --eta=1")

    def errors(
        self, model: Denoiser, u0: torch.Tensor, k: torch.Tensor, eps: torch.Tensor, kernel: ReverseKernel
    ) -> torch.Tensor:
        """The bound's terms themselves, as there is only one kernel with a bound: nats, float64 (B, 1).

        For a step k -> j > 0 both posteriors have the same variance, and their divergence is (SNR_j / SNR_k - 1) / 2 times the
        squared error of eps, summed over frequencies. For j = 0 see `reconstruction`.
        """
        assert isinstance(kernel, PosteriorKernel)
        z, _ = self.corrupt(u0, k, eps)
        error = self.basis.coefficients(self.predict(model, z, k) - eps).double()
        of_z, _, _ = kernel.coefficients(k)
        j = kernel.after(k)
        _, sigma_k = self.alpha_sigma(k)
        _, sigma_j = self.alpha_sigma(j)
        divergence = 0.5 * ((of_z * sigma_k / sigma_j) ** 2 - 1) * error**2
        # At j = 0 of_z is 1 / alpha_k and the estimate of x is off by sigma_k / alpha_k times the error of eps.
        x = 2 * u0.double() - 1
        estimate = x - self.basis.images((of_z * sigma_k * error).float())
        likelihood = log_discretized_gaussian(x, estimate, sigma_k / self.a[k][:, None, None, None])
        return torch.where((j == 0)[:, None], -likelihood.sum((1, 2, 3))[:, None], divergence.sum((1, 2, 3))[:, None])

    def terms(self, errors: torch.Tensor, k: torch.Tensor, kernel: ReverseKernel) -> torch.Tensor:
        """KL(q(z_j | z_k, x) || p(z_j | z_k))."""
        return errors[:, 0]

    def reconstruction(self, errors: torch.Tensor, kernel: ReverseKernel) -> torch.Tensor:
        """-log p(x | z_k): a normal around the estimate of x with standard deviation sigma_k / a_k, integrated over each of the
        256 values as in DDPM (Ho et al., 2020, equation 13).
        """
        return errors[:, 0]

    def prior_summary(self, u0: torch.Tensor, prior: Prior) -> torch.Tensor:
        """KL(q(z_K | x) || N(0, I)) in nats: float64 (B,)."""
        alpha, sigma = self.alpha_sigma(torch.tensor([self.K], device=self.a.device))
        mean = alpha * self.basis.coefficients(2 * u0.to(self.a.device).float() - 1)
        return 0.5 * (mean**2 + sigma**2 - 1 - 2 * sigma.log()).sum((1, 2, 3))

    def prior_term(self, summary: torch.Tensor, prior: Prior, kernel: ReverseKernel) -> torch.Tensor:
        """That divergence, exactly."""
        return summary


class VelocityBlurringDiffusion(BlurringDiffusion):
    """The same process, loss and sampler with a network that predicts v = (alpha eps - sigma x) / sqrt(alpha^2 + sigma^2).

    v (Salimans and Ho, 2022) is in each frequency the part of (x, eps) orthogonal to z. Where alpha is small, z is nearly
    all noise, and an error of the network reaches x unamplified; an error in eps is multiplied by sigma / alpha, up to 150,000.
    """

    def predict(self, model: Denoiser, u_k: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """The estimate of eps that follows from z and the network's estimate of v."""
        alpha, sigma = self.alpha_sigma(k)
        square = alpha**2 + sigma**2
        of_z, of_v = (sigma / square).float(), (alpha / square.sqrt()).float()
        v = self.basis.coefficients(model(u_k, k).float())
        return self.basis.images(of_z * self.basis.coefficients(u_k) + of_v * v)


def log_discretized_gaussian(x: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """log P(x) of 8-bit values scaled to [-1, 1] for a normal rounded to the nearest of them: float64, the shape of x.

    The outermost of the 256 values take the rest of the line, so that probabilities sum to 1.
    """
    lower, upper = (x - HALF_BIN - mean) / std, (x + HALF_BIN - mean) / std
    lower = torch.where(x < HALF_BIN - 1, -math.inf, lower)
    upper = torch.where(x > 1 - HALF_BIN, math.inf, upper)
    # By symmetry move the interval to the negative side, where the logarithm of the distribution function is accurate.
    flip = lower + upper > 0
    lower, upper = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
    log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    return log_upper + torch.log1p(-torch.exp(log_lower - log_upper))
