"""Scores that can be quoted: each with its error, what it depends on, and where it is written down."""

import importlib.metadata
import json
import math
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from scripts.config.paths import ROOT, plain_name
from scripts.errors import printable
from scripts.estimate import Estimate
from scripts.storage.files import atomic_write, make_directory
from scripts.storage.provenance import commit, now, program_version

RUNS = ROOT / "runs"
"""Scores of all models are logged below it."""
RESULTS = Path("evaluation", "results.jsonl")
"""In a run directory: all scores of its model, with all that they depend on."""
OWNER = "run.txt"
"""In a directory of results that was named after a run: which run that is."""


@dataclass(frozen=True)
class Result:
    """One score of one trained model."""

    score: str
    """Its name as in the log file's, such as "FID"."""
    estimate: Estimate
    settings: dict[str, Any]
    """What the value depends on, as plain data."""
    interval: tuple[float, float] | None = None
    """For proportions, a 95% confidence interval."""
    note: str = ""
    """What a reader must know, in a line."""
    per_image: np.ndarray | None = field(default=None, repr=False, compare=False)
    """Float64 (N,): the value is their mean to first order, up to a constant. Differences between
    results are paired by it.
    """
    groups: np.ndarray | None = field(default=None, repr=False, compare=False)
    """Int64 (N,): the initial image of each sample, or another number for those that are not
    independent; None: all are."""
    picture: Figure | None = field(default=None, repr=False, compare=False)
    """Of this result and of those that come with it."""

    def __str__(self) -> str:
        interval = (
            ""
            if self.interval is None
            else ", 95% interval {:.4f} to {:.4f}".format(*self.interval)
        )
        images, groups = self.estimate.num_images, self.estimate.num_groups
        initial = (
            ""
            if groups in (None, images)
            else f" from {groups} initial image{'s' if groups != 1 else ''}"
        )
        return f"{self.score}: {self.estimate} (N = {images}{initial}{interval})" + (
            self.note and f"; {self.note}"
        )


def results_directory(
    root: Path, dataset_name: str, experiment_name: str, run: Path | None = None
) -> Path:
    """Where the release keeps its logs: <root>/<dataset>/evaluation_results/<experiment>, `root`
    being `runs`.

    run: whose name the experiment has; where another run of that name has results there, they go
    beside them. Raises UserError for names that lead elsewhere; an experiment may be in folders of
    its own, such as "a/b".
    """
    plain_name("--dataset_name", dataset_name)
    for part in experiment_name.split("/"):
        plain_name("--experiment_name", part)
    directory = root / dataset_name / "evaluation_results" / experiment_name
    owner = directory / OWNER
    if run is None or not owner.exists() or owner.read_text() == str(run.resolve()):
        return directory
    return directory.with_name(f"{directory.name}_{zlib.crc32(bytes(run.resolve())):08x}")


def append_result(
    directory: Path, result: Result, *, param_name: str, seconds: float, workdir: Path | None = None
) -> Path:
    """Add a line to <directory>/<SCORE>_log.txt and the same value, with everything behind it, to
    `results.jsonl`.

    param_name: settings, separated by commas, whose values are then given ("delta: 0.0125, FID:
    21.3"), or any label. seconds: time taken. workdir: the run directory of the model, which has
    `evaluation/results.jsonl` and pictures; without it, or if it cannot be written to, they are in
    `directory`. Returns the file. Raises UserError for a directory that is not writable.
    """
    make_directory(directory, "evaluation results")
    settings, estimate = result.settings, result.estimate
    label = ", ".join(
        f"{name}: {settings[name]}" if name in settings else printable(name)
        for name in param_name.split(",")
    )
    at = commit()
    row = {
        "score": result.score,
        "value": estimate.value,
        "standard_error": estimate.standard_error
        if math.isfinite(estimate.standard_error)
        else None,  # JSON has no infinity
        "num_images": estimate.num_images,
        "num_initial_images": estimate.num_groups,
        "interval_95": result.interval,
        "note": result.note,
        "param_name": param_name,
        **settings,
        "versions": {
            "torch": importlib.metadata.version("torch"),
            "program": program_version() + (f"+{at}" if at else ""),
        },
        "seconds": round(seconds, 2),
        "finished": now(),
    }
    place = directory
    if workdir is not None and os.access(workdir, os.W_OK):
        place = make_directory(workdir / RESULTS.parent, "--workdir")
    if result.picture is not None:
        row["picture"] = (
            f"{result.score}_{zlib.crc32(json.dumps([settings, estimate.num_images]).encode()):08x}.png"
        )
        with atomic_write(place / row["picture"]) as temporary:
            result.picture.savefig(temporary, dpi=150)
        print(f"picture: {place / row['picture']}", flush=True)
    _append_line(place / RESULTS.name, json.dumps(row))
    _append_line(
        directory / f"{result.score}_log.txt", f"{label}, {result.score}: {estimate.value:.8g}"
    )
    return place / RESULTS.name


def _append_line(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(line + "\n")
