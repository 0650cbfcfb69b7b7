"""What a run measures: rows of metrics.jsonl, and the same with sample pictures and configuration
in TensorBoard.
"""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from scripts.runtime import distributed
from scripts.runtime.progress import optional
from scripts.storage.files import read_json_lines, write_text
from scripts.training.step import StepResult

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

NUM_BANDS = 4
COUNTS = {"eval_num_images", "nonfinite_steps", "unreadable_images"}
"""In metrics.jsonl, and no charts in TensorBoard."""


class MetricsWriter(AbstractContextManager["MetricsWriter"]):
    """Appends rows to `metrics.jsonl`, and to the optional `tensorboard/`, in process 0."""

    def __init__(self, workdir: Path, first_step: int) -> None:
        """Rows from after `first_step`, left by a run that was killed, are dropped: those steps are
        done again.

        Rows of events stay whatever their step: those steps do not repeat them.
        """
        path = workdir / "metrics.jsonl"
        self._folder, self._first_step = workdir / "tensorboard", first_step
        self._writes = distributed.is_main()
        rows = []
        if self._writes:
            rows = [
                row
                for row in read_json_lines(path)
                if "event" in row or row.get("step", 0) <= first_step
            ]
            write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
            self._file = path.open("a")
        self.evaluated_steps = set(
            distributed.from_main([row.get("step") for row in rows if "eval_loss" in row])
        )

    @cached_property
    def _summaries(self) -> "SummaryWriter":
        """TensorBoard's writer, made when it is first used."""
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        return SummaryWriter(str(self._folder), purge_step=self._first_step + 1)

    def _summarize(self, add: Callable[["SummaryWriter"], object]) -> None:
        if not self._writes:
            return
        with optional("tensorboard"):
            self._folder.mkdir(exist_ok=True)  # tidy users remove it
            add(self._summaries)
            self._summaries.flush()  # while its directory is there

    def __exit__(self, *_: object) -> None:
        if self._writes:
            with suppress(OSError):  # a full disk was reported when the row was written
                self._file.close()
        self._summarize(lambda board: board.close())

    def write(self, step: int, **values: float) -> None:
        """Write a row: the step and named numbers, to the eight digits that a float32 has. Raises
        OSError.
        """

        def scalars(board: "SummaryWriter") -> None:
            """Chart all but counts, in the groups train/ and held_out/."""
            for name, value in values.items():
                if name.startswith("eval_"):
                    tag = f"held_out/{name.removeprefix('eval_')}"
                else:
                    tag = f"train/{name}"
                if name not in COUNTS:
                    board.add_scalar(tag, value, step)

        self._append({"step": step, **{name: float(f"{v:.8g}") for name, v in values.items()}})
        self._summarize(scalars)

    def event(self, step: int, event: str, **facts: Any) -> None:
        """Write a row about the run itself, such as "resumed"; not in TensorBoard."""
        self._append({"step": step, "event": event, **facts})

    def text(self, step: int, name: str, text: str) -> None:
        """Preformatted text in TensorBoard."""
        lines = indent(text, "    ")
        self._summarize(lambda board: board.add_text(name, lines, step))

    def image(self, step: int, name: str, path: Path) -> None:
        """Show the picture in a file in TensorBoard."""

        def picture(board: "SummaryWriter") -> None:
            board.add_image(name, np.asarray(Image.open(path)), step, dataformats="HWC")

        self._summarize(picture)

    def _append(self, row: dict[str, Any]) -> None:
        if not self._writes:
            return
        try:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._file.name) from None


class LossWindow:
    """Training losses since the last row, over all levels and by band of levels."""

    def __init__(self, K: int) -> None:
        """Levels 1..K are divided into `NUM_BANDS` bands of equal size, as far as possible."""
        self.edges = sorted({K * i // NUM_BANDS for i in range(NUM_BANDS + 1)})
        self.results: list[StepResult] = []
        self.seconds = 0.0

    def add(self, result: StepResult, seconds: float) -> None:
        """Add what one step measured, and the time that it took, waiting for its data included."""
        self.results.append(result)
        self.seconds += seconds

    def summary(self) -> dict[str, float]:
        """Images per second and means over the finite steps of the window by name; then the next
        window begins.
        """
        num_images = sum(len(result.losses) for result in self.results)
        row = {"images_per_second": num_images / self.seconds}
        finite = [result for result in self.results if result.finite]
        self.results, self.seconds = [], 0.0
        if finite:
            losses = torch.cat([result.losses.cpu() for result in finite])
            levels = torch.cat([result.levels for result in finite])
            row["loss"] = losses.mean().item()
            row["grad_norm"] = sum(result.grad_norm for result in finite) / len(finite)
            for low, high in pairwise(self.edges):
                in_band = losses[(levels > low) & (levels <= high)]
                if len(in_band):
                    row[f"loss_levels_{low + 1}_to_{high}"] = in_band.mean().item()
        return row
