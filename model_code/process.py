"""A generative process as training, sampling and evaluation see it.

Another process is another subclass of `Process` in a file of its own, and a line in `model_code.PROCESSES`: see
docs/your_own_process.md. The paper's is in `heat.py`: nothing else knows of heat.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from ml_collections import ConfigDict
from torch import nn

from model_code.kernels import Chain, ReverseKernel, subchain
from model_code.prior import Prior

Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""The network f(u_k, k): images (B, C, H, W) and int64 levels (B,) to (B, C, H, W)."""
Measured = Mapping[str, torch.Tensor] | None
"""What `Process.calibration` returned for a network, as it is kept in checkpoints; None if nothing was measured."""


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
            *("model.blur_schedule", "model.blur_sigma_min", "model.blur_sigma_max", "model.sigma", "model.delta_over_sigma"),
            *("model.protocol", "training.level_weighting", "training.noise_images"),
        }
    )
    """Which of these keys it reads, which not every process does: one that is set and not read is a warning."""
    calibrates = False
    """Whether there is a calibrated kernel, which `moments` and `calibration` measure."""

    @abstractmethod
    def corrupt(self, u0: torch.Tensor, k: torch.Tensor, eps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A state u_k ~ q(u_k | u_0) and what the network has to predict from it.

        u0, the standard normal eps and both results are (B, C, H, W); k is int64 (B,) in 1..K.
        """

    @abstractmethod
    def predict(self, model: Denoiser, u_k: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """The network's prediction of the target of `corrupt`, which the reverse kernel is given, too: float32 (B, C, H, W)."""

    @abstractmethod
    def sampling_noise(
        self, kind: float | str, measured: Measured, chain: Chain | None = None, eta: float | None = None
    ) -> ReverseKernel:
        """The reverse kernel that --delta asks for: a standard deviation, a name, or "auto" for the best.

        chain: the levels to visit, by default those of the training. eta: by what a posterior's standard deviation is
        multiplied, for a process with such kernels. Raises ValueError, saying what to do, if there is none.
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
        raise ValueError("this process does not know which levels are best for the bound: use --steps=N")

    def moments(self, model: Denoiser, u0: torch.Tensor, k: torch.Tensor, eps: torch.Tensor, num_images: int) -> torch.Tensor:
        """Sums over a batch at one level k, to be added up over `num_images` images for `calibration`: float64 (S,)."""
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

    def require_bound(self, kernel: ReverseKernel) -> None:  # most have none to refuse
        """Raise ValueError, naming the flag, for a kernel whose bound is infinite or not known."""
        return

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


def full_chain(K: int) -> Chain:
    """All levels: K, K - 1, ..., 0."""
    return tuple(range(K, -1, -1))


def configured_chain(config: ConfigDict) -> Chain:
    """The levels that config.model.chain names, all by default. Raises ValueError for others."""
    levels, text = full_chain(config.model.K), config.model.chain
    try:
        return subchain(text, levels) if text else levels
    except ValueError as error:
        raise ValueError(f"config.model.chain = {text!r}: {error}") from None


def require_sampling_noise(config: ConfigDict, *known: str) -> None:
    """Raise ValueError if config.model.sampling_noise is none of a process's own."""
    if config.model.sampling_noise not in known:
        raise ValueError(f"config.model.sampling_noise = {config.model.sampling_noise!r}: must be {' or '.join(known)}")
