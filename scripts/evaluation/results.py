"""Scores that can be quoted, each with its error and what it depends on, and their files."""

import importlib.metadata
import json
import math
import os
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.config.paths import ROOT, plain_name
from scripts.errors import printable
from scripts.estimate import Estimate
from scripts.sampling.choice import Choice
from scripts.storage.files import atomic_write, make_directory, read_json_lines
from scripts.storage.record import commit, now, program_version

RUNS = ROOT / "runs"
"""Scores of all models are logged below it."""
RESULTS = Path("evaluation", "results.jsonl")
"""In a run directory: all scores of its model, with all that they depend on."""
OWNER = "run.txt"
"""In a directory of results that was named after a run: which run that is."""
SAMPLING = {
    "sampler": "{}",
    "guidance": "guidance {:g}",
    "guidance_interval": "at levels {0[0]} to {0[1]}",
    "init": "init {}",
    "from_level": "from level {}",
    "per_init": "{} of each",
}
"""Settings of samples in a row of results that tables show where they are set (`is_set`)."""


def is_set(row: dict[str, Any], key: str) -> bool:
    """Whether a row of results has a setting, and it is not what it is where nobody sets it."""
    K = row.get("model", {}).get("K")
    defaults = {"guidance": 1, "guidance_interval": [1, K], "from_level": K, "per_init": 1}
    return row.get(key) is not None and row[key] != defaults.get(key)


def shown(row: dict[str, Any], texts: Mapping[str, str] = SAMPLING) -> list[str]:
    """The settings that are set, each as its text says."""
    return [text.format(row[key]) for key, text in texts.items() if is_set(row, key)]


@dataclass(frozen=True)
class Point(Choice):
    """The settings of an evaluation."""

    checkpoint: int = 0
    """Its number, 0 for the newest."""
    seed: int | None = None
    """None for the configuration's."""

    def __str__(self) -> str:
        """Those that are not the defaults."""
        texts = []
        for each in fields(self):
            value = getattr(self, each.name)
            if value != each.default:
                texts.append(f"{each.name} = {value}")
        return ", ".join(texts)


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
        images, groups = self.estimate.num_images, self.estimate.num_groups
        text = f"{self.score}: {self.estimate} (N = {images}"
        if groups not in (None, images):
            text += f" from {groups} initial image{'s' if groups != 1 else ''}"
        if self.interval is not None:
            text += ", 95% interval {:.4f} to {:.4f}".format(*self.interval)
        return f"{text})" + (self.note and f"; {self.note}")


def results_directory(
    root: Path, dataset_name: str, experiment_name: str, run: Path | None = None
) -> Path:
    """Return where the release keeps its logs: <root>/<dataset>/evaluation_results/<experiment>,
    `root` being `runs`.

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
) -> None:
    """Append to the release's logs, see `append_log`, and with everything behind it to a .jsonl.

    seconds: time taken. workdir: the run directory of the model, see `results_file`; pictures are
    beside that file. point: key of a sweep's point, for `read_points`. Raises UserError for a
    directory that is not writable.
    """
    file = results_file(directory, workdir)
    make_directory(file.parent, "--workdir")
    at = commit()
    common: dict[str, Any] = {
        "param_name": param_name,
        "versions": {
            "torch": importlib.metadata.version("torch"),
            "program": program_version() + (f"+{at}" if at else ""),
        },
        "seconds": round(seconds, 2),
        "finished": now(),
    }
    if point is not None:
        common |= {"point": point, "scores_of_point": len(results)}
    lines = ""
    for result in results:
        estimate, error = result.estimate, result.estimate.standard_error
        row: dict[str, Any] = {
            "score": result.score,
            "value": estimate.value,
            "standard_error": error if math.isfinite(error) else None,  # JSON has no infinity
            "num_images": estimate.num_images,
            "num_initial_images": estimate.num_groups,
            "interval_95": result.interval,
            "note": result.note,
        }
        row |= result.settings | common
        if point is not None:
            arrays = {"per_image": result.per_image, "groups": result.groups}
            row |= {name: array.tolist() for name, array in arrays.items() if array is not None}
        if result.picture is not None:
            crc32 = zlib.crc32(json.dumps([result.settings, estimate.num_images]).encode())
            picture = file.with_name(f"{result.score}_{crc32:08x}.png")
            save_figure(result.picture, picture)
            print(f"picture: {picture}", flush=True)
            row["picture"] = picture.name
        lines += json.dumps(row) + "\n"
        append_log(directory, result, param_name)
    _append(file, lines)


def append_log(directory: Path, result: Result, param_name: str, once: bool = False) -> None:
    """Append to <directory>/<SCORE>_log.txt, as the release does: "delta: 0.0125, FID: 21.3".

    param_name: settings, separated by commas, whose values come first, or any label. once: unless
    the file has the line.
    """
    make_directory(directory, "evaluation results")
    settings, file = result.settings, directory / f"{result.score}_log.txt"
    label = ", ".join(
        f"{name}: {settings[name]}" if name in settings else printable(name)
        for name in param_name.split(",")
    )
    line = f"{label}, {result.score}: {result.estimate.value:.8g}\n"
    if not (once and file.exists() and line in file.read_text().splitlines(keepends=True)):
        _append(file, line)


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
            error = math.inf if row["standard_error"] is None else row["standard_error"]
            estimate = Estimate(row["value"], error, row["num_images"], row["num_initial_images"])
            arrays: dict[str, Any] = {
                name: np.array(row[name]) for name in ("per_image", "groups") if name in row
            }
            points[row["point"]][row["score"]] = Result(row["score"], estimate, row, **arrays)
    return {
        point: list(results.values())
        for point, results in points.items()
        if all(result.settings["scores_of_point"] == len(results) for result in results.values())
    }


def error_bars(
    axes: Axes, x: Sequence[Any], values: Sequence[float], errors: Sequence[float], label: str = ""
) -> None:
    """Draw values with their standard errors; what is of a single image has none."""
    bars = np.where(np.isfinite(errors), errors, np.nan)
    axes.errorbar(x, values, bars, fmt="o-", ms=3, lw=1, capsize=2, label=label or None)
    axes.grid(alpha=0.3, which="both")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture file."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)
