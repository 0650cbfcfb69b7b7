"""From --delta, --steps and --eta to a reverse kernel."""

import contextlib
import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from model_code.gaussian import GaussianProcess
from model_code.kernels import GaussianKernel
from model_code.process import CalibrationState, Chain, Process, ReverseKernel, subchain
from scripts.errors import UserError
from scripts.sampling.reverse import SAMPLERS

NAMES = ("auto", "isotropic", "spectral", "calibrated", "posterior")


@dataclass(frozen=True)
class Choice:
    """How to sample.

    None is the configuration's way: its sampling noise, all levels that were trained.
    """

    delta: str | float | None = None
    """A standard deviation, or one of `NAMES`."""
    steps: str | None = None
    """"N" evenly spaced, "N:bound" for the best bound, or all levels "K,...,0"."""
    eta: float | None = None
    """Share of fresh noise in a step: 1 is ancestral sampling, 0 deterministic."""
    sampler: str = "reverse"
    """A key of `reverse.SAMPLERS`."""
    init: str | None = None
    """What samples start from instead of the prior's images: held_out, train, or a path."""
    per_init: int | None = None
    """Samples of each image of `init`, by default one."""
    from_level: int | None = None
    """The level to which these images are blurred, by default K."""
    classes: str | None = None
    """The classes of samples, as `labels.find_classes` reads them; by default as in the data."""
    guidance: float | None = None
    """Of class-conditional networks, see `guidance.conditioned`; by default 1, none."""
    guidance_interval: str | None = None
    """"lo,hi": the levels that are guided, by default all."""

    def kind(self, sampling_noise: str) -> str | float:
        """What --delta says, by default the configuration's sampling noise. Raises UserError."""
        return sampling_noise if self.delta is None else parse_number("delta", self.delta, NAMES)

    def kernel(
        self, process: Process, sampling_noise: str, calibration: CalibrationState
    ) -> ReverseKernel:
        """The kernel of a process with this calibration; sampling_noise: the configuration's.

        Raises UserError, naming the flag, if it cannot be had.
        """
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise UserError(f"--eta={self.eta}: must be from 0 to 1")
        if self.sampler not in SAMPLERS:
            raise UserError(f"--sampler={self.sampler}: must be one of {', '.join(SAMPLERS)}")
        require_predictions(self.sampler, process)
        kind = self.kind(sampling_noise)
        named = [
            f"--{name}={getattr(self, name)}"
            for name in ("delta", "steps", "eta")
            if getattr(self, name) is not None
        ]
        source = " ".join(named) or f"config.model.sampling_noise = {kind!r}"
        try:
            chain = None
            if self.steps is not None:
                chain = parse_steps(self.steps, process, calibration, self.eta)
            kernel = process.reverse_kernel(kind, calibration, chain, self.eta)
        except ValueError as error:
            raise UserError(f"{source}: {error}") from None
        require_kernel(self.sampler, kernel)
        return kernel

    def uses_calibration(self, sampling_noise: str, process: Process) -> bool:
        """Whether the kernel depends on the checkpoint's calibration, if it has one."""
        kind = self.kind(sampling_noise)
        if kind == "auto" and process.measures_calibration:
            return True
        return kind in ("spectral", "calibrated") or ":bound" in (self.steps or "")

    def label(self, kernel: ReverseKernel) -> str:
        """A name for directories: "0.0125", "calibrated_steps_25", "calibrated_steps_25_bound"."""
        method = "" if self.sampler == "reverse" else f"_{self.sampler}"
        if self.guidance is not None:
            method += f"_guidance_{self.guidance:g}"
        if self.guidance_interval is not None:
            method += "_in_" + self.guidance_interval.replace(",", "_")
        if self.classes is not None:
            method += "_class_" + re.sub(r"\W+", "_", self.classes)[:40]
        if self.steps is None:
            return kernel.label + method
        name = self.steps.replace(":", "_")
        if "," in self.steps:
            name = f"{len(kernel.chain) - 1}_{zlib.crc32(repr(kernel.chain).encode()):08x}"
        return f"{kernel.label}_steps_{name}{method}"


def parse_number(flag: str, text: str | float, names: Sequence[str] = ()) -> Any:
    """A number of at least 0, or one of the names as it is. Raises UserError for anything else."""
    if text in names:
        return text
    with contextlib.suppress(ValueError):
        if 0 <= (number := float(text)) < math.inf:
            return number
    other = f", or one of {', '.join(names)}" if names else ""
    raise UserError(f"--{flag}={text}: must be a number of at least 0{other}")


def parse_steps(
    text: str, process: Process, calibration: CalibrationState, eta: float | None = None
) -> Chain:
    """The levels that --steps names, some of `process.chain`. Raises ValueError for others."""
    number, _, how = text.partition(":")
    if how != "bound" or not number.isdecimal():
        return subchain(text, process.chain)
    return process.best_chain(calibration, len(subchain(number, process.chain)) - 1, eta)


def parse_interval(text: str | None, K: int) -> tuple[int, int]:
    """The levels that --guidance_interval names, all by default. Raises UserError for others."""
    if text is None:
        return 1, K
    with contextlib.suppress(ValueError):
        lowest, highest = map(int, text.split(","))
        if 1 <= lowest <= highest <= K:
            return lowest, highest
    right = f"must be lo,hi: two levels from 1 to {K}, the lower one first"
    raise UserError(f"--guidance_interval={text}: {right}")


def require_predictions(sampler: str, process: Process) -> None:
    """Raise UserError unless the network predicts what steps of this sampler are made of."""
    predicts = process.predicts if isinstance(process, GaussianProcess) else None
    if sampler == "multistep" and predicts not in ("x", "v"):
        # An estimate of x by eps has sigma / alpha times its error, and is extrapolated.
        raise UserError("--sampler=multistep: the network must predict x or v")
    if sampler == "heun" and predicts not in ("x", "eps", "v"):
        raise UserError("--sampler=heun: the network must predict x, eps or v")


def require_kernel(sampler: str, kernel: ReverseKernel) -> None:
    """Raise UserError unless this sampler can take steps along the kernel."""
    if sampler == "reverse":
        return
    if not isinstance(kernel, GaussianKernel) or kernel.fit:
        right = "must be posterior with this sampler"
        raise UserError(f"--sampler={sampler}: delta is {kernel.label}: {right}: --delta=posterior")
    if sampler == "heun" and kernel.eta > 0:
        raise UserError("--sampler=heun: its steps are deterministic: --eta=0")
