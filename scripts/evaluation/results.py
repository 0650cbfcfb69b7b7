"""Scores that can be quoted: each with its error, what it depends on, and where it is written down."""

import importlib.metadata
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from scripts.estimate import Estimate
from scripts.io import make_directory, plain_name
from scripts.provenance import commit, config_hash, now, program_version

if TYPE_CHECKING:
    import numpy as np

RESULTS = Path("evaluation", "results.jsonl")
"""In a run directory: all scores of its model, for scripts/tools/report.py."""


@dataclass(frozen=True)
class Result:
    """One score of one trained model."""

    score: str
    """Its name as in the log file's, such as "FID"."""
    value: float
    standard_error: float | None
    """None where it is not known."""
    num_images: int
    """N, the images that the score was computed on."""
    settings: dict[str, Any]
    """What the value depends on, as plain data: `common_settings` and whatever is particular to the score."""
    interval: tuple[float, float] | None = None
    """For proportions, a 95% confidence interval."""
    note: str = ""
    """What a reader must know, in a line."""
    per_image: "np.ndarray | None" = field(default=None, repr=False, compare=False)
    """Float64 (N,), whose mean is the value to first order, up to a constant: differences between settings are paired by it."""

    @classmethod
    def of(cls, score: str, estimate: Estimate, settings: dict[str, Any], **more: Any) -> "Result":
        """From an estimate; `more` are the other fields."""
        return cls(score, estimate.value, estimate.standard_error, estimate.num_images, settings, **more)

    @property
    def estimate(self) -> Estimate:
        """The value with its error, infinite where it is not known."""
        return Estimate(self.value, math.inf if self.standard_error is None else self.standard_error, self.num_images)

    def __str__(self) -> str:
        interval = "" if self.interval is None else ", 95% interval {:.4f} to {:.4f}".format(*self.interval)
        return f"{self.score}: {self.estimate} (N = {self.num_images}{interval})" + (f"; {self.note}" if self.note else "")


def common_settings(
    config: ConfigDict, *, checkpoint: int, step: int, delta: float | str, seed: int, precision: str = "float32"
) -> dict[str, Any]:
    """What every score depends on. checkpoint: its number as on the command line, 0 the newest; step: training steps in it."""
    return {
        "delta": delta,
        "seed": seed,
        "checkpoint": checkpoint,
        "checkpoint_step": step,
        "precision": precision,
        "config_hash": config_hash(config),
    }


def results_directory(root: Path, dataset_name: str, experiment_name: str) -> Path:
    """Where the release keeps its logs: <root>/<dataset>/evaluation_results/<experiment>, `root` being `runs`.

    Raises UserError for names that lead elsewhere; an experiment may be in folders of its own, such as "a/b".
    """
    plain_name("--dataset_name", dataset_name)
    for part in experiment_name.split("/"):
        plain_name("--experiment_name", part)
    return root / dataset_name / "evaluation_results" / experiment_name


def append_result(
    directory: Path,
    result: Result,
    *,
    param_name: str,
    seconds: float,
    workdir: Path | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Add a line to <directory>/<SCORE>_log.txt and the same value, with everything behind it, to <SCORE>_log.jsonl.

    param_name: settings, separated by commas, whose values are then given ("delta: 0.0125, FID: 21.3"), or any label.
    seconds: time taken. workdir: the run directory of the model, whose `evaluation/results.jsonl` gets the line, too, if it can
    be written to. more: further plain data for the JSON. Raises UserError if the directory cannot be written to.
    """
    make_directory(directory, "evaluation results")
    settings = result.settings
    label = ", ".join(f"{name}: {settings[name]}" if name in settings else printable(name) for name in param_name.split(","))
    known = result.standard_error is not None and math.isfinite(result.standard_error)
    row = {
        "score": result.score,
        "value": result.value,
        "standard_error": result.standard_error if known else None,  # JSON has no infinity
        "num_images": result.num_images,
        "interval_95": result.interval,
        "note": result.note,
        "param_name": param_name,
        **settings,
        **(more or {}),
        "versions": versions(),
        "seconds": round(seconds, 2),
        "finished": now(),
    }
    append_line(directory / f"{result.score}_log.jsonl", json.dumps(row))
    append_line(directory / f"{result.score}_log.txt", f"{label}, {result.score}: {result.value:.8g}")
    if workdir is not None and os.access(workdir, os.W_OK):
        append_line(make_directory(workdir / RESULTS.parent, "--workdir") / RESULTS.name, json.dumps(row))


def result_of_row(row: Mapping[str, Any]) -> Result:
    """The result of a line that `append_result` wrote, with all of the line as its settings."""
    interval = row["interval_95"]
    return Result(
        row["score"],
        row["value"],
        row["standard_error"],
        row["num_images"],
        dict(row),
        None if interval is None else (interval[0], interval[1]),
        row["note"],
    )


def append_line(path: Path, line: str) -> None:
    """Add one line to a file, in one piece and on disk when this returns; half a line left by a killed process stays alone."""
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            line = line if file.read() == b"\n" else "\n" + line
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def versions() -> Mapping[str, str]:
    """Of PyTorch and of this program: the project's version, and the commit where git knows one."""
    at = commit()
    program = program_version() + (f"+{at}" if at else "")
    return {"torch": importlib.metadata.version("torch"), "program": program}
