"""Scores that can be quoted: each with its error, what it depends on, and where it is written down."""

import importlib.metadata
import json
import math
import os
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from scripts.config.paths import ROOT, plain_name
from scripts.errors import printable
from scripts.estimate import Estimate
from scripts.storage.files import atomic_write, make_directory, read_json_lines
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


def results_file(directory: Path, workdir: Path | None) -> Path:
    """Return the file of records: of the run, or in `directory` where that cannot be written to."""
    if workdir is not None and os.access(workdir, os.W_OK):
        return workdir / RESULTS
    return directory / RESULTS.name


def append_results(
    directory: Path,
    results: Sequence[Result],
    *,
    param_name: str,
    seconds: float,
    workdir: Path | None = None,
    point: str | None = None,
) -> Path:
    """Append to <directory>/<SCORE>_log.txt, and the same with everything behind it to a .jsonl.

    param_name: settings, separated by commas, whose values are then given ("delta: 0.0125, FID:
    21.3"), or any label. seconds: time taken. workdir: the run directory of the model, see
    `results_file`; pictures are beside that file. point: key of a sweep's point, for `read_points`.
    Returns the file. Raises UserError for a directory that is not writable.
    """
    make_directory(directory, "evaluation results")
    file = results_file(directory, workdir)
    make_directory(file.parent, "--workdir")
    at = commit()
    common = {
        "param_name": param_name,
        "versions": {
            "torch": importlib.metadata.version("torch"),
            "program": program_version() + (f"+{at}" if at else ""),
        },
        "seconds": round(seconds, 2),
        "finished": now(),
    }
    lines = []
    for result in results:
        settings, estimate = result.settings, result.estimate
        error = estimate.standard_error
        row: dict[str, Any] = {
            "score": result.score,
            "value": estimate.value,
            "standard_error": error if math.isfinite(error) else None,  # JSON has no infinity
            "num_images": estimate.num_images,
            "num_initial_images": estimate.num_groups,
            "interval_95": result.interval,
            "note": result.note,
        }
        row |= settings | common
        if point is not None:
            row |= {"point": point, "scores_of_point": len(results)}
            arrays = {"per_image": result.per_image, "groups": result.groups}
            row |= {name: array.tolist() for name, array in arrays.items() if array is not None}
        if result.picture is not None:
            crc32 = zlib.crc32(json.dumps([settings, estimate.num_images]).encode())
            row["picture"] = f"{result.score}_{crc32:08x}.png"
            with atomic_write(file.with_name(row["picture"])) as temporary:
                result.picture.savefig(temporary, dpi=150)
            print(f"picture: {file.with_name(row['picture'])}", flush=True)
        lines.append(json.dumps(row) + "\n")
        label = ", ".join(
            f"{name}: {settings[name]}" if name in settings else printable(name)
            for name in param_name.split(",")
        )
        log = directory / f"{result.score}_log.txt"
        _append(log, f"{label}, {result.score}: {estimate.value:.8g}\n")
    _append(file, "".join(lines))
    return file


def _append(file: Path, lines: str) -> None:
    """Add whole lines, after half a line that an interrupted program has left, too."""
    with file.open("ab+") as opened:
        if opened.tell() > 0:
            opened.seek(-1, os.SEEK_END)
            if opened.read(1) != b"\n":
                opened.write(b"\n")
        opened.write(lines.encode())


def read_points(file: Path) -> dict[str, list[Result]]:
    """Return the results of sweeps that are complete, by the keys of their points."""
    points: dict[str, dict[str, Result]] = defaultdict(dict)
    for row in read_json_lines(file):
        if "point" in row:
            error = row["standard_error"]
            estimate = Estimate(
                row["value"],
                math.inf if error is None else error,
                row["num_images"],
                row["num_initial_images"],
            )
            arrays: dict[str, Any] = {
                name: np.array(row[name]) for name in ("per_image", "groups") if name in row
            }
            points[row["point"]][row["score"]] = Result(row["score"], estimate, row, **arrays)
    return {
        point: list(results.values())
        for point, results in points.items()
        if all(result.settings["scores_of_point"] == len(results) for result in results.values())
    }
