"""Sweeps: the same evaluation at many settings, with the same random numbers, continued where it was interrupted."""

import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from scripts import distributed
from scripts.errors import UserError
from scripts.estimate import Estimate
from scripts.evaluation.metrics import LOWER_IS_BETTER
from scripts.evaluation.results import Result, append_result, result_of_row
from scripts.io import atomic_write, make_directory, read_json_lines

SPECTRAL = "spectral"
"""A value of delta that is not a number."""
Value = float | str


@dataclass(frozen=True)
class Point:
    """The settings that can be swept."""

    delta: Value
    """Sampling noise: a standard deviation, or "spectral"."""
    checkpoint: int
    """Its number, 0 for the newest."""
    seed: int

    def __str__(self) -> str:
        return f"delta {self.delta}, checkpoint {self.checkpoint}, seed {self.seed}"


Evaluate = Callable[[Point], list[Result]]
Scores = Sequence[tuple[Point, list[Result]]]
Axes = dict[str, list[Value]]
"""The values of each swept setting, by its name, in the order in which they were given."""


def parse_sweeps(texts: Sequence[str]) -> Axes:
    """Each "name=first:last:step" (both ends included) or "name=a,b,..." as values: {"delta": [0.01, 0.011]}.

    Raises UserError for a name that cannot be swept or is given twice, and for values that it cannot have.
    """
    axes: Axes = {}
    for text in texts:
        name, _, values = text.partition("=")
        if name not in Point.__annotations__:
            raise UserError(f"--sweep={text}: must be {', '.join(Point.__annotations__)} =first:last:step or =a,b,...")
        if name in axes:
            raise UserError(f"--sweep={text}: {name} is swept already; give all its values at once")
        axes[name] = _values(text, values, whole=name != "delta")
    return axes


def _values(text: str, values: str, whole: bool) -> list[Value]:
    """The values of one sweep, without repetitions. Decimal arithmetic: 0.010:0.016:0.001 has seven of them, all round."""
    try:
        if ":" in values:
            first, last, step = map(Decimal, values.split(":"))
            if step <= 0 or last < first:
                raise ValueError
            numbers = [first + i * step for i in range(int((last - first) / step) + 1)]
        else:
            numbers = [Decimal(part) for part in values.split(",") if whole or part != SPECTRAL]
        if any(not number.is_finite() or number < 0 or (whole and number % 1) for number in numbers):
            raise ValueError
    except (ArithmeticError, ValueError):
        kind = "integers" if whole else f"{SPECTRAL} or numbers"
        raise UserError(f"--sweep={text}: must be first:last:step or a,b,..., {kind} of at least 0, step above 0") from None
    found: list[Value] = [int(number) if whole else float(number) for number in numbers]
    if not whole and SPECTRAL in values.split(","):
        found.append(SPECTRAL)
    return list(dict.fromkeys(found))


def sweep_points(base: Point, axes: Axes) -> list[Point]:
    """All combinations, `base` giving what is not swept. Delta changes fastest: a bound needs no new network calls."""
    names = sorted(axes, key=lambda name: name == "delta")
    combinations = itertools.product(*(axes[name] for name in names))
    return [Point(**{**asdict(base), **dict(zip(names, values, strict=True))}) for values in combinations]


@dataclass(frozen=True)
class Runner:
    """Evaluates points and appends their scores to logs, from which finished points are read instead."""

    evaluate: Evaluate
    directory: Path
    """Of the logs."""
    request: Callable[[Point], dict[str, Any]]
    """What the scores of a point of a sweep depend on besides the point, as plain data."""
    param_name: str
    workdir: Path | None = None
    """The run directory of the model."""

    def run_point(self, point: Point, key: str = "") -> list[Result]:
        """Evaluate and log; of several processes only process 0 has scores. key: under which a sweep finds them again."""
        started = time.monotonic()
        results = self.evaluate(point)
        seconds = time.monotonic() - started
        record = {"evaluation": key, "scores": [result.score for result in results]} if key else {}
        for result in results:
            if key and result.per_image is not None:
                file = self._per_image_file(key, result.score)
                with atomic_write(make_directory(file.parent, "evaluation results") / file.name) as temporary:
                    np.save(temporary, np.asarray(result.per_image, np.float64))
            append_result(
                self.directory, result, param_name=self.param_name, seconds=seconds, workdir=self.workdir, more=record
            )
            print(result, flush=True)
        return results

    def run(self, points: Sequence[Point]) -> Scores:
        """The scores of all points; those that the logs have are not computed again. Only process 0 has scores.

        All requests are made first, so that an error in one of them shows at once.
        """
        keys = distributed.from_main([self._key(point) for point in points])
        done = distributed.from_main({key: self._logged(key, rows) for key, rows in self._rows().items()})
        found = sum(bool(done.get(key)) for key in keys)
        print(f"sweep of {len(points)} points" + (f", {found} of them in {self.directory}" if found else ""), flush=True)
        scores = []
        for number, (point, key) in enumerate(zip(points, keys, strict=True), 1):
            if not done.get(key):
                print(f"[{number}/{len(points)}] {point}", flush=True)
            scores.append((point, done.get(key) or self.run_point(point, key)))
        return scores

    def _key(self, point: Point) -> str:
        text = json.dumps({"point": asdict(point), "request": self.request(point)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _rows(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Rows of the logs by evaluation and score."""
        rows: dict[str, dict[str, dict[str, Any]]] = {}
        for path in sorted(self.directory.glob("*_log.jsonl")):
            for row in read_json_lines(path):
                if "evaluation" in row:
                    rows.setdefault(row["evaluation"], {})[row["score"]] = row
        return rows

    def _logged(self, key: str, rows: dict[str, dict[str, Any]]) -> list[Result]:
        """The results of an evaluation; none if it was interrupted before all of them were written."""
        names = next(iter(rows.values()))["scores"]
        if not rows.keys() >= set(names):
            return []
        results = []
        for name in names:
            file = self._per_image_file(key, name)
            results.append(result_of_row(rows[name], np.load(file) if file.exists() else None))
        return results

    def _per_image_file(self, key: str, score: str) -> Path:
        return self.directory / "per_image" / f"{score}_{key}.npy"


def best_of(scores: Scores, kind: str) -> tuple[Point, Result]:
    """The point with the best value of a score."""
    sign = 1 if kind in LOWER_IS_BETTER else -1
    candidates = [(point, result) for point, results in scores for result in results if result.score == kind]
    return min(candidates, key=lambda pair: sign * pair[1].estimate.value)


def difference(result: Result, best: Result) -> Estimate | None:
    """How far a result is from another, with the error of the difference paired by image; None where that is not known.

    With the same random numbers most of the variation between images cancels out, so that the error is far below that of
    either value.
    """
    a, b = result.per_image, best.per_image
    if a is None or b is None or len(a) != len(b) or len(a) < 2:
        return None
    return Estimate(result.estimate.value - best.estimate.value, float((a - b).std(ddof=1)) / math.sqrt(len(a)), len(a))


def report(scores: Scores, axes: Axes, directory: Path) -> str:
    """A table of all scores with their differences from the best, and the best of each; also written to `sweep_<axes>.txt`.

    Each score has a plot beside it. Returns the text.
    """
    from scripts.evaluation.plots import plot_sweep

    make_directory(directory, "evaluation results")
    names = list(axes)
    stem = f"sweep_{'_'.join(names)}"
    kinds = [result.score for result in scores[0][1]]
    best = {kind: best_of(scores, kind) for kind in kinds}
    paired = [kind for kind in kinds if best[kind][1].per_image is not None]
    heads = [f"{head:>22}" for kind in kinds for head in [kind, *(["from the best"] if kind in paired else [])]]
    lines = ["  ".join([f"{name:>10}" for name in names] + heads)]
    for point, results in scores:
        cells = [f"{getattr(point, name)!s:>10}" for name in names]
        for result in results:
            cells.append(f"{result.estimate!s:>22}")
            if result.score in paired:
                away = difference(result, best[result.score][1])
                cells.append(f"{'-' if away is None or point == best[result.score][0] else away!s:>22}")
        lines.append("  ".join(cells))
    for kind, (point, result) in best.items():
        lines.append(f"best {kind}: {result.estimate} at {', '.join(f'{name} = {getattr(point, name)}' for name in names)}")
        series: dict[str, list[tuple[Value, Estimate]]] = {}
        for at, results in scores:
            label = ", ".join(f"{name} {getattr(at, name)}" for name in names[1:])
            estimate = next(r.estimate for r in results if r.score == kind)
            series.setdefault(label, []).append((getattr(at, names[0]), estimate))
        plot_sweep(directory / f"{stem}_{kind}.png", names[0], kind, series)
    if paired:
        lines.append("from the best: differences with errors paired by image")
    text = "\n".join(lines)
    with atomic_write(directory / f"{stem}.txt") as temporary:
        temporary.write_text(text + "\n")
    return f"{text}\ntable and plots: {directory / stem}*"
