"""What a run measures: rows of metrics.jsonl, the same in TensorBoard."""

import json
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import torch

from scripts.distributed import ALONE, World
from scripts.files import read_json_lines, replacing
from scripts.train_step import StepResult

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

NUM_BANDS = 4


class MetricsWriter:
    """Appends rows to `metrics.jsonl` and the same numbers to `tensorboard/`; of several processes only process 0 does."""

    def __init__(self, workdir: Path, first_step: int, world: World = ALONE) -> None:
        """Rows from after `first_step`, left by a run that was killed, are dropped: they will be written again."""
        path = workdir / "metrics.jsonl"
        rows = [row for row in read_json_lines(path) if row["step"] <= first_step] if world.is_main else []
        self.evaluated_steps = set(world.from_main([row["step"] for row in rows if "eval_loss" in row]))
        self._writes = world.is_main
        if self._writes:
            with replacing(path) as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
            self._file = path.open("a")
        self._workdir, self._first_step = workdir, first_step

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._writes:
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
        self._file.write(json.dumps({"step": step, **{name: float(f"{v:.8g}") for name, v in values.items()}}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)


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

    def add(self, result: StepResult, seconds: float) -> None:
        """What one step measured, and the time that it took, waiting for its data included."""
        self.losses.append(result.losses.cpu())
        self.levels.append(result.levels.cpu())
        self.grad_norms.append(result.grad_norm)
        self.seconds += seconds

    def summary(self) -> dict[str, float]:
        """Means over the window by name, and images per second; then `reset`."""
        losses, levels = torch.cat(self.losses), torch.cat(self.levels)
        row = {
            "loss": losses.mean().item(),
            "grad_norm": sum(self.grad_norms) / len(self.grad_norms),
            "images_per_second": len(losses) / self.seconds,
        }
        for low, high in zip(self.edges[:-1], self.edges[1:], strict=True):
            in_band = losses[(levels > low) & (levels <= high)]
            if len(in_band):
                row[f"loss_levels_{low + 1}_to_{high}"] = in_band.mean().item()
        self.reset()
        return row
