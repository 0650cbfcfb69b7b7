"""The paper's process: inverse heat dissipation."""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from ml_collections import ConfigDict

from model_code import elbo
from model_code.blur import DCTBlur, blur_schedule
from model_code.calibration import Calibration, Moments, spectral_kernel
from model_code.kernels import Chain, GaussianKernel, IsotropicKernel, ReverseKernel, arrivals
from model_code.prior import Prior, PriorBank
from model_code.process import Denoiser, Likelihood, Measured, Process, configured_chain, full_chain, require_sampling_noise
from model_code.spectrum import bin_sums

CALIBRATE = "run python -m scripts.tools.calibrate, or give a standard deviation with --delta"


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
        if model.blur_schedule != "log":
            if isinstance(model.blur_schedule, str):  # a file or the training images have not been read
                raise ValueError(f"config.model.blur_schedule = {model.blur_schedule!r}: its levels are not known here")
            schedule = torch.tensor(model.blur_schedule, dtype=torch.float64)
        blur = DCTBlur(schedule, data.image_size, data.image_size)
        settings = data.num_channels, model.protocol, model.patch_size, configured_chain(config), model.delta_over_sigma
        return cls(blur, model.sigma, *settings)

    def extra_repr(self) -> str:
        """Levels, blur, noise."""
        least, middle, most = self.blur.schedule[1], self.blur.schedule[(self.K + 1) // 2], self.blur.schedule[-1]
        blur = f"sigma_B {least:g} to {most:g} pixels, {middle:.3g} at level {(self.K + 1) // 2}"
        return f"{super().extra_repr()}, {blur}, sigma {self.sigma:g}, protocol {self.protocol}"

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

    def sampling_noise(
        self, kind: float | str, measured: Measured, chain: Chain | None = None, eta: float | None = None
    ) -> GaussianKernel:
        """The paper's isotropic noise; "spectral", its variance by level and frequency; or "calibrated", mean and variance.

        The first two take the network's mean as it is, and so visit the levels that it was trained to visit. "auto" is
        "calibrated" where that was measured, isotropic noise of `delta` otherwise.
        """
        if eta is not None:
            raise ValueError("only for processes whose reverse kernel is a posterior, such as blurring_diffusion")
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
            return IsotropicKernel(self.delta if isinstance(kind, str) else kind, chain, self.shape)
        if kind != "spectral":
            raise ValueError("must be a number of at least 0, auto, isotropic, spectral or calibrated")
        if measured is not None and spectrum_only:
            return spectral_kernel(measured["errors"], chain, self.shape, self.sigma)
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
        """Squared errors of the kernel's mean, summed over bins: float64 (B, R)."""
        after = arrivals(kernel.chain, self.K).to(k.device)
        target, mean = self.blur.at_levels(u0, after[k], k)
        u_k = mean + self.sigma * eps
        error = target - kernel.mean(u_k, self.predict(model, u_k, k), k)
        return bin_sums(_gaussian(kernel).basis.coefficients(error).square(), _gaussian(kernel).bins)

    def require_bound(self, kernel: ReverseKernel) -> None:
        """A step without noise has no density."""
        if kernel.prior_std == 0:
            raise ValueError("--delta=0: the bound is infinite without sampling noise; delta must be greater than 0")

    def bound_levels(self, kernel: ReverseKernel) -> Sequence[int]:
        """With protocol 'released' the levels 1..K-1: the release counts k = 1 twice and leaves out k = K."""
        as_released = self.protocol == "released" and kernel.chain == full_chain(self.K)
        return range(1, self.K) if as_released else super().bound_levels(kernel)

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

    def _calibration(self, measured: Measured) -> Calibration:
        if measured is None:
            raise ValueError(f"nothing was measured for this checkpoint: {CALIBRATE}")
        return Calibration(measured, self._decay(), self.shape[0], self.sigma)

    @functools.lru_cache(maxsize=2)  # noqa: B019  # for the batches of one measurement
    def _moments(self, num_images: int) -> Moments:
        return Moments.of_images(self.shape, num_images, self.patch_size)

    def _decay(self) -> torch.Tensor:
        """exp(-lambda t_k): float64 (K + 1, H, W)."""
        return self.blur.decay(torch.arange(self.K + 1, device=self.after.device))[:, 0].double().cpu()

    def _sizes(self, kernel: ReverseKernel) -> torch.Tensor:
        """Coefficients in each of the kernel's bins: float64 (R,)."""
        return bin_sums(torch.ones(self.shape), _gaussian(kernel).bins.cpu())


def _gaussian(kernel: ReverseKernel) -> GaussianKernel:
    return kernel  # type: ignore[return-value]  # the only kind that `sampling_noise` gives


def _bank(prior: Prior) -> PriorBank:
    assert isinstance(prior, PriorBank)
    return prior
