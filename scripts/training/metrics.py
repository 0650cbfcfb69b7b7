"""What a run measures: rows of metrics.jsonl, the same in TensorBoard."""

import json
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from scripts import distributed
from scripts.errors import UserError
from scripts.io import atomic_write, read_json_lines
from scripts.training.step import StepResult

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

NUM_BANDS = 4


class MetricsWriter:
    """Appends rows to `metrics.jsonl` and the same numbers to `tensorboard/`; of several processes only process 0 does."""

    def __init__(self, workdir: Path, first_step: int) -> None:
        """Rows from after `first_step`, left by a run that was killed, are dropped: they will be written again.

        Events stay whatever their step: they happened, and will not again.
        """
        path = workdir / "metrics.jsonl"
        rows = []
        if distributed.is_main():
            rows = [row for row in read_json_lines(path) if "event" in row or row["step"] <= first_step]
        self.evaluated_steps = set(distributed.from_main([row["step"] for row in rows if "eval_loss" in row]))
        self._writes = distributed.is_main()
        if self._writes:
            with atomic_write(path) as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
            self._file = path.open("a")
        self._workdir, self._first_step = workdir, first_step

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._writes:
            with suppress(OSError):  # what a full disk did not take was reported when it was written
                self._file.close()
        if "_tensorboard" in self.__dict__:
            self._tensorboard.close()

    @cached_property
    def _tensorboard(self) -> "SummaryWriter":
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import, and opens a file

        return SummaryWriter(str(self._workdir / "tensorboard"), purge_step=self._first_step + 1)

    def write(self, step: int, **values: float) -> None:
        """One row: the step and named numbers, to the eight digits that a float32 has."""
        if not self._writes:
            return
        self._append({"step": step, **{name: float(f"{v:.8g}") for name, v in values.items()}})
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)

    def event(self, step: int, event: str, **facts: Any) -> None:
        """One row about the run itself, such as "resumed", with plain data. TensorBoard, which draws numbers, gets none."""
        if self._writes:
            self._append({"step": step, "event": event, **facts})

    def _append(self, row: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(f"{self._file.name}: cannot be written ({error.strerror})") from None


class LossWindow:
    """Training losses since the last row, in all and by band of blur levels."""

    def __init__(self, K: int) -> None:
        """Levels 1..K are divided into `NUM_BANDS` bands of equal size, as far as possible."""
        num_bands = min(NUM_BANDS, K)
        self.edges = [K * i // num_bands for i in range(num_bands + 1)]
        self.reset()

    def reset(self) -> None:
        """Start the next window."""
        self.losses: list[torch.Tensor] = []
        self.levels: list[torch.Tensor] = []
        self.grad_norms: list[float] = []
        self.seconds = 0.0
        self.num_images = 0

    def add(self, result: StepResult, seconds: float) -> None:
        """What one step measured, and the time that it took, waiting for its data included."""
        self.seconds += seconds
        self.num_images += len(result.losses)
        if result.finite:
            self.losses.append(result.losses.cpu())
            self.levels.append(result.levels.cpu())
            self.grad_norms.append(result.grad_norm)

    def summary(self) -> dict[str, float]:
        """Means over the good steps of the window by name, if there were any, and images per second; then `reset`."""
        row = {"images_per_second": self.num_images / self.seconds}
        if not self.losses:
            self.reset()
            return row
        losses, levels = torch.cat(self.losses), torch.cat(self.levels)
        row["loss"] = losses.mean().item()
        row["grad_norm"] = sum(self.grad_norms) / len(self.grad_norms)
        for low, high in zip(self.edges[:-1], self.edges[1:], strict=True):
            in_band = losses[(levels > low) & (levels <= high)]
            if len(in_band):
                row[f"loss_levels_{low + 1}_to_{high}"] = in_band.mean().item()
        self.reset()
        return row
