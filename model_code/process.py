"""A generative process as training, sampling and evaluation see it, and the paper's: inverse heat dissipation.

Another process is another subclass of `Process` in a file of its own, and a line in `model_code.PROCESSES`: see
docs/your_own_process.md. Nothing outside knows of heat.
"""

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from ml_collections import ConfigDict
from torch import nn

from model_code import elbo
from model_code.blur import DCTBlur, blur_schedule
from model_code.calibration import Calibration, Moments, bin_sums, frequency_bins, spectral_kernel
from model_code.dct import dct2
from model_code.kernels import Chain, GaussianKernel, IsotropicKernel, ReverseKernel, arrivals
from model_code.prior import Prior, PriorBank

Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""The network f(u_k, k): images (B, C, H, W) and int64 levels (B,) to (B, C, H, W)."""
Measured = Mapping[str, torch.Tensor] | None
"""What `Process.calibration` returned for a network, as it is kept in checkpoints; None if nothing was measured."""

CALIBRATE = "run python -m scripts.tools.calibrate, or give a standard deviation with --delta"


class Process(nn.Module, ABC):
    """Levels 0..K, from data (0) to the prior (K). Images u_0 are in [0, 1]; states may have any range.

    A module only so that its tables move to the device; it has no weights. `protocol` is 'paper', or 'released' to reproduce
    the original release where it differs.
    """

    K: int
    chain: Chain
    """The levels that a network is trained to visit, K first, 0 last."""
    protocol = "paper"
    reads = frozenset(
        {
            *("model.blur_sigma_min", "model.blur_sigma_max", "model.sigma", "model.delta_over_sigma"),
            *("training.level_weighting", "training.noise_images"),
        }
    )
    """Which of these keys of the configuration it reads, that not every process does."""
    calibrates = False
    """Whether there is a calibrated kernel, which `moments` and `calibration` measure."""

    @abstractmethod
    def corrupt(self, u0: torch.Tensor, k: torch.Tensor, eps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A state u_k ~ q(u_k | u_0) and what the network has to predict from it.

        u0, the standard normal eps and both results are (B, C, H, W); k is int64 (B,) in 1..K.
        """

    @abstractmethod
    def predict(self, model: Denoiser, u_k: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """What the loss compares with the target of `corrupt`, and reverse kernels are made from: float32 (B, C, H, W)."""

    @abstractmethod
    def sampling_noise(self, kind: float | str, measured: Measured, chain: Chain | None = None) -> ReverseKernel:
        """The reverse kernel that --delta asks for: a standard deviation, a name, or "auto" for the best.

        chain: the levels to visit, by default those of the training. Raises ValueError, saying what to do, if there is none.
        """

    @abstractmethod
    def build_prior(self, batches: Iterable[torch.Tensor]) -> Prior:
        """The prior, from all training images in batches (B, C, H, W); a process that needs none does not read them."""

    @abstractmethod
    def prior_from_state(self, state: Mapping[str, torch.Tensor]) -> Prior:
        """The prior that `state_dict` described. Raises ValueError if it is of other images than this process's."""

    def to_images(self, state: torch.Tensor) -> torch.Tensor:
        """A state in the range of images, about [0, 1]."""
        return state

    def best_chain(self, measured: Measured, steps: int) -> Chain:
        """The levels to visit in `steps` steps for the best bound. Raises ValueError if that is not known."""
        raise ValueError("which levels are best is not known for this process: leave :bound out")

    def moments(self, model: Denoiser, u0: torch.Tensor, k: torch.Tensor, eps: torch.Tensor, num_images: int) -> torch.Tensor:
        """Sums over a batch, one of `num_images` in all, from which `calibration` is made, at one level k: float64 (S,)."""
        raise NotImplementedError

    def calibration(self, rows: torch.Tensor, num_images: int) -> Mapping[str, torch.Tensor]:
        """The state of what was measured, from the sums of `moments` over `num_images` images by level: (K + 1, S)."""
        raise NotImplementedError

    @property
    def training_levels(self) -> Sequence[int]:
        """Levels that are trained, ascending; the release leaves out level K."""
        return sorted(self.chain[:-1] if self.protocol == "paper" else self.chain[1:-1])

    def level_weights(self, power: float) -> torch.Tensor:
        """By how much the loss of each level counts, of mean 1 over `training_levels`: float32 (K + 1,). 0 is no weighting."""
        return torch.ones(self.K + 1)

    def extra_repr(self) -> str:
        """Its settings in a line, for a person."""
        steps = f", {len(self.chain) - 1} of them visited" if len(self.chain) <= self.K else ""
        return f"K = {self.K} levels{steps}"


class Likelihood(ABC):
    """What a process adds for a bound on the likelihood: L_K, a KL term for each step k -> j of a kernel's chain, and L_0."""

    discrete = False
    """Whether the bound is one on the probability of 8-bit images, rather than on the density of dequantised ones."""

    def bound_levels(self, kernel: ReverseKernel) -> Sequence[int]:
        """Levels k, ascending, whose KL terms the bound sums, besides the prior's and the last step's."""
        return sorted(kernel.chain[:-2])

    @abstractmethod
    def errors(
        self, model: Denoiser, u0: torch.Tensor, k: torch.Tensor, eps: torch.Tensor, kernel: ReverseKernel
    ) -> torch.Tensor:
        """What the bound needs of the network at levels k (B,) for kernels with this one's mean: float64 (B, S)."""

    @abstractmethod
    def terms(self, errors: torch.Tensor, k: torch.Tensor, kernel: ReverseKernel) -> torch.Tensor:
        """KL(q(u_j | u_k, u_0) || p(u_j | u_k)) from `errors` (B, S) at levels k (B,): nats, float64 (B,)."""

    @abstractmethod
    def reconstruction(self, errors: torch.Tensor, kernel: ReverseKernel) -> torch.Tensor:
        """L_0 = -log p(u_0 | u_k) from `errors` (B, S) at the last level k before 0: nats, float64 (B,)."""

    @abstractmethod
    def prior_summary(self, u0: torch.Tensor, prior: Prior) -> torch.Tensor:
        """What `prior_term` needs of images u_0 (B, C, H, W): (B, ...)."""

    @abstractmethod
    def prior_term(self, summary: torch.Tensor, prior: Prior, kernel: ReverseKernel) -> torch.Tensor:
        """L_K or a bound on it, in nats: float64 (B,)."""

    def prior_monte_carlo(
        self, summary: torch.Tensor, prior: Prior, kernel: ReverseKernel, eps: torch.Tensor
    ) -> torch.Tensor | None:
        """Where `prior_term` is a bound: an unbiased estimate of L_K from standard normal eps of the summary's shape."""
        return None


def full_chain(K: int) -> Chain:
    """All levels: K, K - 1, ..., 0."""
    return tuple(range(K, -1, -1))


def require_sampling_noise(config: ConfigDict, *known: str) -> None:
    """Raise ValueError if config.model.sampling_noise is none of a process's own."""
    if config.model.sampling_noise not in known:
        raise ValueError(f"config.model.sampling_noise = {config.model.sampling_noise!r}: must be {' or '.join(known)}")


class HeatDissipation(Process, Likelihood):
    """Images lose detail as heat spreads: q(u_k | u_0) = N(A_k u_0, sigma^2 I), mu(u_k, k) = u_k + f(u_k, k)."""

    calibrates = True

    def __init__(
        self,
        blur: DCTBlur,
        sigma: float,
        num_channels: int = 1,
        protocol: str = "paper",
        patch_size: int = 1,
        chain: Chain | None = None,
        delta_over_sigma: float = 1.25,
    ) -> None:
        """sigma: the training noise, a standard deviation; patch_size: of the network, which is blind to a few frequencies.

        delta_over_sigma: the paper's sampling noise; the release's is 0.01 whatever sigma is.
        """
        super().__init__()
        self.delta = 0.01 if protocol == "released" else delta_over_sigma * sigma
        self.blur, self.sigma, self.protocol, self.K = blur, sigma, protocol, blur.K
        self.chain = chain or full_chain(blur.K)
        self.shape = (num_channels, len(blur.D_H), len(blur.D_W))
        self.patch_size = patch_size
        self.register_buffer("after", arrivals(self.chain, self.K), persistent=False)

    after: torch.Tensor

    @classmethod
    def from_config(cls, config: ConfigDict) -> "HeatDissipation":
        """As config.model and config.data say. Raises ValueError for settings that cannot be."""
        model, data = config.model, config.data
        require_sampling_noise(config, "auto", "isotropic", "spectral", "calibrated")
        if not 0 < model.blur_sigma_min <= model.blur_sigma_max:
            least = f"must be at least config.model.blur_sigma_min = {model.blur_sigma_min}"
            raise ValueError(f"config.model.blur_sigma_max = {model.blur_sigma_max}: {least}")
        schedule = blur_schedule(model.K, model.blur_sigma_min, model.blur_sigma_max)
        blur = DCTBlur(schedule, data.image_size, data.image_size)
        return cls(
            blur, model.sigma, data.num_channels, model.protocol, model.patch_size, delta_over_sigma=model.delta_over_sigma
        )

    def extra_repr(self) -> str:
        """Levels, blur, noise."""
        least, most = self.blur.schedule[1], self.blur.schedule[-1]
        return f"{super().extra_repr()}, sigma_B {least:g} to {most:g} pixels, sigma {self.sigma:g}, protocol {self.protocol}"

    def corrupt(self, u0: torch.Tensor, k: torch.Tensor, eps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """u_k = A_k u_0 + sigma eps and the target A_j u_0, where j = k - 1 (paper, Algorithm 1) or the chain's next level."""
        target, mean = self.blur.at_levels(u0, self.after[k], k)
        return mean + self.sigma * eps, target

    def predict(self, model: Denoiser, u_k: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """mu(u_k, k) = u_k + f(u_k, k)."""
        return u_k + model(u_k, k).float()

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

    def sampling_noise(self, kind: float | str, measured: Measured, chain: Chain | None = None) -> GaussianKernel:
        """The paper's isotropic noise; "spectral", its variance by level and frequency; or "calibrated", mean and variance.

        The first two take the network's mean as it is, and so visit the levels that it was trained to visit. "auto" is
        "calibrated" where that was measured, isotropic noise of `delta` otherwise.
        """
        chain = chain or self.chain
        spectrum_only = measured is not None and "errors" in measured  # as in older checkpoints
        if kind == "auto":
            best = "spectral" if spectrum_only else "calibrated"
            kind = best if measured is not None and self.protocol == "paper" else "isotropic"
        if kind == "calibrated" and not spectrum_only:
            return self._calibration(measured).kernel("calibrated", chain)
        if kind == "calibrated":
            raise ValueError(f"only the spectrum of the noise was measured for this checkpoint: {CALIBRATE}")
        if chain != self.chain[-len(chain) :]:
            raise ValueError(f"skipping levels that were trained needs the calibrated kernel: {CALIBRATE}")
        if kind == "isotropic" or not isinstance(kind, str):
            return IsotropicKernel(self.delta if isinstance(kind, str) else kind, chain, *self.shape[1:])
        if kind != "spectral":
            raise ValueError("must be a number of at least 0, auto, isotropic, spectral or calibrated")
        if measured is not None and spectrum_only:
            return spectral_kernel(measured["errors"], chain, *self.shape[1:], self.sigma)
        return self._calibration(measured).kernel("spectral", chain, identity=True)

    def best_chain(self, measured: Measured, steps: int) -> Chain:
        """By the expected terms of the bound."""
        return self._calibration(measured).best_chain(self.chain, steps)

    def moments(self, model: Denoiser, u0: torch.Tensor, k: torch.Tensor, eps: torch.Tensor, num_images: int) -> torch.Tensor:
        """Of u_k, f and u_0."""
        u_k, _ = self.corrupt(u0, k, eps)
        return self._moments(num_images).row(u0, u_k, self.predict(model, u_k, k) - u_k)

    def calibration(self, rows: torch.Tensor, num_images: int) -> Mapping[str, torch.Tensor]:
        """The state of a `Calibration`."""
        return self._moments(num_images).calibrated(rows, num_images, self._decay())

    def errors(
        self, model: Denoiser, u0: torch.Tensor, k: torch.Tensor, eps: torch.Tensor, kernel: ReverseKernel
    ) -> torch.Tensor:
        """Squared errors of the kernel's mean, summed over bins of frequencies and channels: float64 (B, R)."""
        after = arrivals(kernel.chain, self.K).to(k.device)
        target, mean = self.blur.at_levels(u0, after[k], k)
        u_k = mean + self.sigma * eps
        error = target - kernel.mean(u_k, self.predict(model, u_k, k), k)
        return bin_sums(dct2(error, self.blur.D_H, self.blur.D_W).square(), _gaussian(kernel).bins).sum(1)

    def bound_levels(self, kernel: ReverseKernel) -> Sequence[int]:
        """With protocol 'released' the levels 1..K-1: the release counts k = 1 twice and leaves out k = K."""
        return super().bound_levels(kernel) if self.protocol == "paper" else range(1, self.K)

    def terms(self, errors: torch.Tensor, k: torch.Tensor, kernel: ReverseKernel) -> torch.Tensor:
        """KL(N(A_j u_0, sigma^2 I) || N(mean, diag(v))), diagonal in the cosine basis."""
        return elbo.gaussian_kl(errors, self.sigma**2, _gaussian(kernel).variances(k), self._sizes(kernel))

    def reconstruction(self, errors: torch.Tensor, kernel: ReverseKernel) -> torch.Tensor:
        """-log N(u_0; mean, diag(v))."""
        last = torch.full((len(errors),), kernel.chain[-2])
        return elbo.negative_log_density(errors, _gaussian(kernel).variances(last), self._sizes(kernel))

    def prior_summary(self, u0: torch.Tensor, prior: Prior) -> torch.Tensor:
        """A_K u_0 in the bank's basis: float32 (B, C, F)."""
        return _bank(prior).project(u0)

    def prior_term(self, summary: torch.Tensor, prior: Prior, kernel: ReverseKernel) -> torch.Tensor:
        """The paper's bound on L_K, by convexity in the mixture."""
        return elbo.prior_kl_bound_of_projected(summary, math.prod(self.shape), _bank(prior), self.sigma, kernel.prior_std)

    def prior_monte_carlo(self, summary: torch.Tensor, prior: Prior, kernel: ReverseKernel, eps: torch.Tensor) -> torch.Tensor:
        """One draw of u_K for each image."""
        return elbo.prior_kl_monte_carlo(summary, math.prod(self.shape), _bank(prior), self.sigma, kernel.prior_std, eps)

    def _calibration(self, measured: Measured) -> Calibration:
        if measured is None:
            raise ValueError(f"nothing was measured for this checkpoint: {CALIBRATE}")
        return Calibration(measured, self._decay(), self.shape[0], self.sigma)

    @functools.lru_cache(maxsize=2)  # noqa: B019  # for the batches of one measurement
    def _moments(self, num_images: int) -> Moments:
        return Moments(frequency_bins(*self.shape[1:], num_images, self.patch_size), self.shape[0])

    def _decay(self) -> torch.Tensor:
        """exp(-lambda t_k): float64 (K + 1, H, W)."""
        return self.blur.decay(torch.arange(self.K + 1, device=self.after.device))[:, 0].double().cpu()

    def _sizes(self, kernel: ReverseKernel) -> torch.Tensor:
        """Coefficients in each of the kernel's bins, of all channels: float64 (R,)."""
        return bin_sums(torch.ones(self.shape), _gaussian(kernel).bins.cpu()).sum(0)


def _gaussian(kernel: ReverseKernel) -> GaussianKernel:
    return kernel  # type: ignore[return-value]  # the only kind that `sampling_noise` gives


def _bank(prior: Prior) -> PriorBank:
    assert isinstance(prior, PriorBank)
    return prior
