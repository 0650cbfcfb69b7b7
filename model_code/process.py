"""A generative process as training, sampling and evaluation see it, and the paper's: inverse heat dissipation.

Another process is another subclass of `Process` in a file of its own, and a line in `model_code.PROCESSES`: see
docs/your_own_process.md. Nothing outside knows of heat.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import torch
from ml_collections import ConfigDict
from torch import nn

from model_code import elbo
from model_code.blur import DCTBlur, blur_schedule
from model_code.dct import dct2
from model_code.noise import GaussianNoise, IsotropicNoise, SamplingNoise, SpectralNoise, ring_sums
from model_code.prior import PriorBank

Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""The network f(u_k, k): images (B, C, H, W) and int64 levels (B,) to (B, C, H, W)."""


class Prior(Protocol):
    """What sampling starts from: means of the last state, one of which is drawn for each sample."""

    def __len__(self) -> int:
        """How many there are."""

    def means(self, indices: torch.Tensor) -> torch.Tensor:
        """Means of u_K for int64 indices (B,): float32 (B, C, H, W)."""

    def dequantized(self) -> "Prior":
        """The prior of the same images dequantised, (v + 1/2) / 256 on average, from that of v / 255."""

    def state_dict(self) -> Mapping[str, torch.Tensor]:
        """Plain tensors for a checkpoint."""


class Process(nn.Module, ABC):
    """Levels 0..K, from data (0) to the prior (K). Images u_0 are in [0, 1]; states may have any range.

    A module only so that its tables move to the device; it has no weights. `protocol` is 'paper', or 'released' to reproduce
    the original release where it differs.
    """

    K: int
    protocol = "paper"
    discrete = False
    """Whether the bound is one on the probability of 8-bit images, rather than on the density of dequantised ones."""

    @abstractmethod
    def corrupt(self, u0: torch.Tensor, k: torch.Tensor, eps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A state u_k ~ q(u_k | u_0) and what the network has to predict from it.

        u0, the standard normal eps and both results are (B, C, H, W); k is int64 (B,) in 1..K.
        """

    @abstractmethod
    def mean(self, model: Denoiser, u_k: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """The mean of p(u_{k-1} | u_k), at k = 1 the sample itself: float32 (B, C, H, W)."""

    @abstractmethod
    def reverse_step(self, mean: torch.Tensor, k: int, eps: torch.Tensor, noise: SamplingNoise) -> torch.Tensor:
        """A draw from p(u_{k-1} | u_k) with the given mean, from standard normal eps (B, C, H, W)."""

    def predict(self, model: Denoiser, u_k: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """What the loss compares with the target of `corrupt`: the mean, unless the network predicts something else."""
        return self.mean(model, u_k, k)

    def extra_repr(self) -> str:
        """Its settings in a line, for a person."""
        return f"K = {self.K} levels"

    def to_images(self, state: torch.Tensor) -> torch.Tensor:
        """A state in the range of images, about [0, 1]."""
        return state

    @property
    def training_levels(self) -> range:
        """Levels that are trained; the release leaves out level K."""
        return range(1, self.K + 1 if self.protocol == "paper" else self.K)

    def level_weights(self, power: float) -> torch.Tensor:
        """By how much the loss of each level counts, of mean 1 over `training_levels`: float32 (K + 1,). 0 is no weighting."""
        return torch.ones(self.K + 1)

    @abstractmethod
    def build_prior(self, batches: Iterable[torch.Tensor]) -> Prior:
        """The prior, from all training images in batches (B, C, H, W); a process that needs none does not read them."""

    @abstractmethod
    def prior_from_state(self, state: Mapping[str, torch.Tensor]) -> Prior:
        """The prior that `state_dict` described. Raises ValueError if it is of other images than this process's."""

    @abstractmethod
    def sampling_noise(self, kind: float | str, measured: Mapping[str, torch.Tensor] | None) -> SamplingNoise:
        """The noise that --delta asks for: a standard deviation, or "spectral", which needs what `measured_noise` returned.

        Raises ValueError, saying what to do, if it cannot be had.
        """

    def measured_noise(self, errors: torch.Tensor) -> Mapping[str, torch.Tensor] | None:
        """The state of spectral noise, from means of `errors` by level (K + 1, S); None for a process without such noise."""
        return None

    @property
    def bound_levels(self) -> range:
        """Levels k whose terms L_{k-1} the bound sums, besides the prior's and that of k = 1."""
        return range(2, self.K + 1) if self.protocol == "paper" else range(1, self.K)

    @abstractmethod
    def errors(self, model: Denoiser, u0: torch.Tensor, k: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """What the bound needs of the network at levels k (B,), whatever the sampling noise: float64 (B, S)."""

    @abstractmethod
    def terms(self, errors: torch.Tensor, k: torch.Tensor, noise: SamplingNoise) -> torch.Tensor:
        """L_{k-1} = KL(q(u_{k-1} | u_k, u_0) || p(u_{k-1} | u_k)) from `errors` (B, S) at levels k (B,): nats, float64 (B,)."""

    @abstractmethod
    def reconstruction(self, errors: torch.Tensor, noise: SamplingNoise) -> torch.Tensor:
        """L_0 = -log p(u_0 | u_1) from `errors` (B, S) at k = 1: nats, float64 (B,)."""

    @abstractmethod
    def prior_summary(self, u0: torch.Tensor, prior: Prior) -> torch.Tensor:
        """What `prior_term` needs of images u_0 (B, C, H, W): (B, ...)."""

    @abstractmethod
    def prior_term(self, summary: torch.Tensor, prior: Prior, noise: SamplingNoise) -> torch.Tensor:
        """L_K or a bound on it, in nats: float64 (B,)."""

    def prior_monte_carlo(
        self, summary: torch.Tensor, prior: Prior, noise: SamplingNoise, eps: torch.Tensor
    ) -> torch.Tensor | None:
        """Where `prior_term` is a bound: an unbiased estimate of L_K from standard normal eps of the summary's shape."""
        return None


def require_sampling_noise(config: ConfigDict, *known: str) -> None:
    """Raise ValueError if config.model.sampling_noise is none of a process's own."""
    if config.model.sampling_noise not in known:
        raise ValueError(f"config.model.sampling_noise = {config.model.sampling_noise!r}: must be {' or '.join(known)}")


class HeatDissipation(Process):
    """Images lose detail as heat spreads: q(u_k | u_0) = N(A_k u_0, sigma^2 I), mu(u_k, k) = u_k + f(u_k, k)."""

    def __init__(self, blur: DCTBlur, sigma: float, num_channels: int = 1, protocol: str = "paper") -> None:
        """sigma: the training noise, a standard deviation."""
        super().__init__()
        self.blur, self.sigma, self.protocol, self.K = blur, sigma, protocol, blur.K
        self.shape = (num_channels, len(blur.D_H), len(blur.D_W))

    @classmethod
    def from_config(cls, config: ConfigDict) -> "HeatDissipation":
        """As config.model and config.data say. Raises ValueError for settings that cannot be."""
        model, data = config.model, config.data
        require_sampling_noise(config, "isotropic", "spectral")
        if not 0 < model.blur_sigma_min <= model.blur_sigma_max:
            least = f"must be at least config.model.blur_sigma_min = {model.blur_sigma_min}"
            raise ValueError(f"config.model.blur_sigma_max = {model.blur_sigma_max}: {least}")
        schedule = blur_schedule(model.K, model.blur_sigma_min, model.blur_sigma_max)
        return cls(DCTBlur(schedule, data.image_size, data.image_size), model.sigma, data.num_channels, model.protocol)

    def extra_repr(self) -> str:
        """Levels, blur, noise."""
        least, most = self.blur.schedule[1], self.blur.schedule[-1]
        return f"{super().extra_repr()}, sigma_B {least:g} to {most:g} pixels, sigma {self.sigma:g}, protocol {self.protocol}"

    def corrupt(self, u0: torch.Tensor, k: torch.Tensor, eps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """u_k = A_k u_0 + sigma eps and the target A_{k-1} u_0 (paper, Algorithm 1)."""
        target, mean = self.blur.at_levels(u0, k - 1, k)
        return mean + self.sigma * eps, target

    @staticmethod
    def mean(model: Denoiser, u_k: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """mu(u_k, k) = u_k + f(u_k, k)."""
        return u_k + model(u_k, k).float()

    @staticmethod
    def reverse_step(mean: torch.Tensor, k: int, eps: torch.Tensor, noise: SamplingNoise) -> torch.Tensor:
        """mean + delta eps, with the standard deviation that `noise` has at step k (paper, Algorithm 2)."""
        assert isinstance(noise, GaussianNoise)
        return mean + noise.scaled(eps, k)

    def level_weights(self, power: float) -> torch.Tensor:
        """Squared errors fall with the blur, about as 1 / sigma_B: weighted by its first power all levels count alike."""
        weights = torch.zeros_like(self.blur.schedule)
        weights[1:] = self.blur.schedule[1:] ** power
        return (weights / weights[list(self.training_levels)].mean()).float()

    def build_prior(self, batches: Iterable[torch.Tensor]) -> PriorBank:
        """The bank of blurred training images."""
        return PriorBank.from_batches(batches, self.blur)

    def prior_from_state(self, state: Mapping[str, torch.Tensor]) -> PriorBank:
        """The bank in a checkpoint."""
        bank = PriorBank.from_state_dict(state)
        found = (bank.coefficients.shape[1], *bank.basis.shape[1:])
        if found != self.shape:
            raise ValueError(f"its prior bank is of images {found}, where this configuration's are {self.shape}")
        return bank

    def sampling_noise(self, kind: float | str, measured: Mapping[str, torch.Tensor] | None) -> GaussianNoise:
        """The paper's isotropic noise, or that of the measured spectrum."""
        if not isinstance(kind, str):
            return IsotropicNoise(kind)
        if measured is None:
            raise ValueError("no spectrum of the sampling noise was measured: run python -m scripts.tools.measure_noise")
        return SpectralNoise.from_state_dict(measured, self.sigma, *self.shape[1:])

    def measured_noise(self, errors: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Mean squared errors of one coefficient, from those summed over rings."""
        return SpectralNoise(errors / self._ring_sizes(), self.sigma, *self.shape[1:]).state_dict()

    def errors(self, model: Denoiser, u0: torch.Tensor, k: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """Squared errors of the mean, summed over rings of frequencies: float64 (B, R)."""
        u_k, target = self.corrupt(u0, k, eps)
        error = target - self.mean(model, u_k, k)
        return ring_sums(dct2(error, self.blur.D_H, self.blur.D_W).square())

    def terms(self, errors: torch.Tensor, k: torch.Tensor, noise: SamplingNoise) -> torch.Tensor:
        """KL(N(A_{k-1} u_0, sigma^2 I) || N(mu, diag(delta_k^2))), diagonal in the cosine basis."""
        assert isinstance(noise, GaussianNoise)
        return elbo.gaussian_kl(errors, self.sigma**2, noise.variances(k, errors.shape[1]), self._ring_sizes())

    def reconstruction(self, errors: torch.Tensor, noise: SamplingNoise) -> torch.Tensor:
        """-log N(u_0; mu, diag(delta_1^2))."""
        assert isinstance(noise, GaussianNoise)
        first = torch.ones(len(errors), dtype=torch.int64)
        return elbo.negative_log_density(errors, noise.variances(first, errors.shape[1]), self._ring_sizes())

    def prior_summary(self, u0: torch.Tensor, prior: Prior) -> torch.Tensor:
        """A_K u_0 in the bank's basis: float32 (B, C, F)."""
        assert isinstance(prior, PriorBank)
        return prior.project(u0)

    def prior_term(self, summary: torch.Tensor, prior: Prior, noise: SamplingNoise) -> torch.Tensor:
        """The paper's bound on L_K, by convexity in the mixture."""
        assert isinstance(prior, PriorBank)
        return elbo.prior_kl_bound_of_projected(summary, math.prod(self.shape), prior, self.sigma, noise.prior_std)

    def prior_monte_carlo(self, summary: torch.Tensor, prior: Prior, noise: SamplingNoise, eps: torch.Tensor) -> torch.Tensor:
        """One draw of u_K for each image."""
        assert isinstance(prior, PriorBank)
        return elbo.prior_kl_monte_carlo(summary, math.prod(self.shape), prior, self.sigma, noise.prior_std, eps)

    def _ring_sizes(self) -> torch.Tensor:
        """Coefficients in each ring, of all channels: float64 (R,)."""
        return ring_sums(torch.ones(1, *self.shape))[0]
