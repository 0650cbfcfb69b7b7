"""A generative process as training, sampling and evaluation see it.

Nearly all processes are settings of one family, see `gaussian.py`. `Process` is for the others:
docs/your_own_process.md has one in a file.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor

from model_code.prior import Prior, StoredStates

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""The network's raw output F = denoise(u_k, k): images (B, C, H, W) and int64 levels (B,) to
(B, C, H, W). A closure: it may hold labels, guidance or another network."""
Chain = tuple[int, ...]
"""The levels that a sample visits, the highest first, 0 last."""
CalibrationState = Mapping[str, Tensor] | None
"""What was measured of a network for its reverse kernels, as checkpoints hold it, if it was."""


class ReverseKernel(ABC):
    """p(u_j | u_k) for each level k of a chain but the last; j is the level that follows."""

    label: str
    """Its name in directories and records: "0.0125", "posterior" or "calibrated"."""
    chain: Chain
    prior_std: float
    """Standard deviation of the noise on the chain's first state."""

    @abstractmethod
    def mean(self, u_k: Tensor, F: Tensor, k: Tensor) -> Tensor:
        """Return the mean of p(u_j | u_k), at j = 0 the sample itself: float32 (B, C, H, W).

        u_k and the network's output F are (B, C, H, W), k int64 levels of the chain (B,) or (1,).
        """

    @abstractmethod
    def noise(self, eps: Tensor, k: int) -> Tensor:
        """Return what is added to the mean, from standard normal eps (B, C, H, W)."""

    def starting_at(self, k: int) -> Self:
        """Return the same kernel along its chain from level k on."""
        shorter = copy.copy(self)
        shorter.chain = self.chain[self.chain.index(k) :]
        return shorter

    def checksum(self) -> int:
        """Return a number that tells kernels along the same chain apart, but for delta."""
        return 0


class Process(ABC):
    """Levels 0..K, from data (0) to the prior (K). Images u_0 are in [0, 1]; states have any range.

    A process of one's own is called with the configuration, and has three methods. If it also has
    those of `GaussianProcess` for a bound, `bound_levels` to `prior_term`, there is one.
    """

    protocol = "paper"
    """Or "released", to reproduce the original release where it differs from the paper."""
    sampling_noises: Sequence[str] = ("auto",)
    """Values of config.model.sampling_noise."""
    measures_calibration = False
    """Whether training measures what calibrated kernels are made from."""
    chain: Chain
    """The levels that a network is trained to visit: all of them, unless a preset takes others."""

    def __init__(self, K: int, shape: tuple[int, int, int]) -> None:
        """shape: (C, H, W) of images and states."""
        self.K = K
        self.shape = shape
        self.chain = full_chain(K)

    @abstractmethod
    def corrupt(self, u0: Tensor, k: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Return a state u_k ~ q(u_k | u_0) and the target of the loss at it.

        u0, the standard normal eps and both results are (B, C, H, W); k is int64 (B,) in 1..K.
        """

    @abstractmethod
    def predict(self, F: Tensor, u_k: Tensor, k: Tensor) -> Tensor:
        """Return the prediction of the target of `corrupt` from the network's output F: (B, C, H,
        W).
        """

    def step(self, F: Tensor, u_k: Tensor, k: int, j: int) -> tuple[Tensor, float]:
        """Mean (B, C, H, W) and standard deviation of p(u_j | u_k) for a step from k to j < k."""
        raise NotImplementedError

    def mean_state(self, u0: Tensor, k: int) -> Tensor:
        """Return the state of images (B, C, H, W) at level k without its noise."""
        return self.corrupt(u0, at_level(k, u0), torch.zeros_like(u0))[0]

    def to_images(self, state: Tensor) -> Tensor:
        """Return a state in the range of images, about [0, 1]."""
        return state

    def build_prior(self, batches: Iterable[Tensor]) -> Prior:
        """Return the prior from all training images in batches (B, C, H, W): their states at level
        K.
        """
        states = [self.mean_state(u, self.K) for u in batches]
        if not states:
            raise ValueError("a prior needs at least one image")
        return StoredStates(torch.cat(states))

    def prior_from_state(self, state: Mapping[str, Tensor]) -> Prior:
        """Return the prior that `state_dict` described; raises ValueError for other images."""
        return StoredStates(**state)

    def reverse_kernel(
        self,
        kind: float | str = "auto",
        calibration: CalibrationState = None,
        chain: Chain | None = None,
        eta: float | None = None,
    ) -> ReverseKernel:
        """Return the reverse kernel that --delta, --steps and --eta ask for.

        Raises ValueError, saying what to do, if there is none.
        """
        if kind != "auto" or eta is not None:
            raise ValueError("this process has one kind of sampling noise: leave it out")
        return StepKernel(self, chain or self.chain)

    def best_chain(self, calibration: CalibrationState, steps: int, eta: float | None) -> Chain:
        """Return the levels to visit in `steps` steps for the best bound. Raises ValueError if
        unknown.
        """
        raise ValueError("this process does not know which levels are best: use --steps=N")

    @property
    def training_levels(self) -> Sequence[int]:
        """Levels that are trained, ascending; the release leaves out level K."""
        return sorted(self.chain[self.protocol == "released" : -1])

    def level_weights(self, power: float) -> Tensor:
        """Weight of each level in the loss, of mean 1 over `training_levels`: float32 (K + 1,)."""
        return torch.ones(self.K + 1)

    def to(self, device: torch.device) -> Self:
        """Return the same process with its tables on a device."""
        moved = copy.copy(self)
        for name, value in vars(self).items():
            if hasattr(value, "to"):
                setattr(moved, name, copy.deepcopy(value).to(device))
        return moved

    @property
    def device(self) -> torch.device:
        """Where its tables are."""
        tensors = (value for value in vars(self).values() if isinstance(value, Tensor))
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def __str__(self) -> str:
        visited = len(self.chain) - 1
        return f"K = {self.K} levels" + (f", {visited} of them visited" if visited < self.K else "")


class StepKernel(ReverseKernel):
    """The kernel of `Process.step`; its first state has the noise of `Process.corrupt`."""

    label = "own"

    def __init__(self, process: Process, chain: Chain) -> None:
        self.process = process
        self.chain = chain
        zero = torch.zeros(1, *process.shape, device=process.device)
        k = torch.tensor(chain[:1], device=process.device)
        noise = process.corrupt(zero, k, zero + 1)[0] - process.corrupt(zero, k, zero)[0]
        self.prior_std = noise.mean().item()

    def mean(self, u_k: Tensor, F: Tensor, k: Tensor) -> Tensor:
        """That of `Process.step`; k is a single level."""
        level = int(k[0])
        return self.process.step(F.float(), u_k, level, self._following(level))[0]

    def noise(self, eps: Tensor, k: int) -> Tensor:
        """Eps times the standard deviation of `Process.step`."""
        zero = torch.zeros_like(eps[:1])
        return self.process.step(zero, zero, k, self._following(k))[1] * eps

    def _following(self, k: int) -> int:
        return self.chain[self.chain.index(k) + 1]


def at_level(k: int, u: Tensor) -> Tensor:
    """Return level k for each of u (B, ...): int64 (B,)."""
    return torch.full((len(u),), k, device=u.device)


def full_chain(K: int) -> Chain:
    """Return all levels: K, K - 1, ..., 0."""
    return tuple(range(K, -1, -1))


def next_levels(chain: Chain, K: int) -> Tensor:
    """Return the level that follows k in the chain, for every k: int64 (K + 1,), 0 elsewhere."""
    following = torch.zeros(K + 1, dtype=torch.int64)
    for k, j in pairwise(chain):
        following[k] = j
    return following


def subchain(text: str, levels: Chain) -> Chain:
    """Return the levels of a chain that are visited: "N" for N steps, evenly spaced, or "K,...,0".

    Raises ValueError for other texts and other levels.
    """
    first, most = levels[0], len(levels) - 1
    parts = text.split(",")
    if len(parts) > 1 and all(part.strip().isdecimal() for part in parts):
        chain = tuple(map(int, parts))
        falls = list(chain) == sorted(set(chain) & set(levels), reverse=True)
        if falls and chain[0] == first and chain[-1] == 0:
            return chain
        raise ValueError(
            f"must go down from {first} to 0, each once, along levels that are trained"
        )
    if not text.isdecimal() or not 1 <= int(text) <= most:
        listed = f"all levels from {first} to 0 with commas"
        raise ValueError(f"must be N from 1 to {most}, or {listed}; --steps also takes N:bound")
    return tuple(levels[round(i * most / int(text))] for i in range(int(text) + 1))
