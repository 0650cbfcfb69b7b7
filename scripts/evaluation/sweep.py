"""Sweeps: one evaluation for all values of lists on flags, with the same random numbers.

A sweep that was interrupted continues from the results that are recorded.
"""

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from scripts.errors import UserError
from scripts.estimate import Estimate, count, error_of_mean
from scripts.evaluation.metrics import distance_from_best
from scripts.evaluation.results import (
    Point,
    Result,
    append_log,
    append_results,
    error_bars,
    read_points,
    results_file,
    save_figure,
)
from scripts.runtime import distributed
from scripts.sampling.choice import NAMES, parse_number
from scripts.storage.files import make_directory, write_text
from scripts.storage.record import Record

Scores = Sequence[tuple[Point, list[Result]]]
Series = dict[str, list[tuple[Any, Estimate]]]
"""A score over the values of one setting, by the values of the others."""


def parse_list(flag: str, text: str) -> list[Any]:
    """Parse the values of --delta, --steps, --checkpoint or --seed: "a,b,..." or ranges of numbers
    "first:last:step", both ends included.

    In --steps a list that ends in 0 is one chain. Raises UserError for values that cannot be.
    """
    if flag == "steps" and text.endswith(",0"):
        return [text]
    parsers: dict[str, Callable[[str], Any]] = {
        "delta": partial(parse_number, flag, names=NAMES),
        "steps": str,
        "guidance": partial(parse_number, flag),
    }
    parse = parsers.get(flag, _parse_integer)
    try:
        parts = [number for part in text.split(",") for number in _expand(part)]
        values = list(dict.fromkeys(map(parse, parts)))
    except UserError:
        raise
    except (ValueError, ArithmeticError):
        values = []
    if not values or "" in values:
        kind = "an integer of at least 0" if parse is _parse_integer else "a value"
        raise UserError(
            f"--{flag}={text}: must be {kind}, several (a,b,...) or a range (first:last:step)"
        )
    return values


def _expand(part: str) -> list[str]:
    """Return all numbers of a range, as one would type them; anything else as it is."""
    if part.count(":") != 2:
        return [part]
    first, last, step = map(float, part.split(":"))
    number = math.floor((last - first) / step + 1e-9) + 1
    return [f"{first + i * step:.12g}" for i in range(number)]


def _parse_integer(text: str) -> int:
    if not 0 <= (number := int(text)) < 2**64:
        raise ValueError
    return number


def sweep_points(axes: Mapping[str, Sequence[Any]], **settings: Any) -> list[Point]:
    """Return all combinations of the values of `axes`, the first of which changes fastest."""
    names = list(axes)[::-1]
    combinations = itertools.product(*(axes[name] for name in names))
    return [Point(**settings, **dict(zip(names, values, strict=True))) for values in combinations]


@dataclass(frozen=True)
class Runner:
    """Evaluates points and records their scores."""

    evaluation: Any
    """A `BoundEvaluation` or a `SampleEvaluation`."""
    directory: Path
    """Of the release's logs."""
    param_name: str
    workdir: Path | None = None
    """The run directory of the model."""

    def run_point(self, point: Point, record: Record | None = None) -> list[Result]:
        """Return the scores, in process 0.

        record: of a sweep's point. Raises UserError if the weights are not those of the record.
        """
        started = time.monotonic()
        results = self.evaluation(point)
        seconds = time.monotonic() - started
        for result in results:
            if record and result.settings.get("weights_crc32") != record.weights["weights_crc32"]:
                raise UserError(
                    f"{point}: the checkpoint changed while it was evaluated; "
                    "name one with --checkpoint=n"
                )
            if self.workdir is not None:
                result.settings["checkpoint"] = point.checkpoint
            print(result, flush=True)
        append_results(
            self.directory,
            results,
            param_name=self.param_name,
            seconds=seconds,
            workdir=self.workdir,
            point=None if record is None else record.key,
        )
        return results

    def run(self, points: Sequence[Point]) -> Scores:
        """Return the scores of all points, in process 0; read those that are recorded.

        Make all records first, so that an error in one shows at once.
        """
        records = [self.evaluation.record(point) for point in points]
        file = results_file(self.directory, self.workdir)
        keys, recorded = distributed.from_main(([r.key for r in records], read_points(file)))
        number = sum(key in recorded for key in keys)
        print(f"sweep of {len(points)} points, {number} of them in {file}", flush=True)
        scores = []
        for i, (point, record, key) in enumerate(zip(points, records, keys, strict=True), 1):
            if key in recorded:
                results = recorded[key]
                if distributed.is_main():
                    for result in results:
                        append_log(self.directory, result, self.param_name, once=True)
            else:
                print(f"[{i}/{len(points)}] {point}", flush=True)
                results = self.run_point(point, record)
            scores.append((point, results))
        return scores


def difference(result: Result, best: Result) -> Estimate | None:
    """How far a result is from another, with the error of the difference paired by image; None
    where that has no meaning.

    With the same random numbers most of the variation between images cancels out. Of samples in
    groups it is paired by group.
    """
    a, b = result.per_image, best.per_image
    if a is None or b is None or len(a) != len(b) or len(a) < 2:
        return None
    groups = np.concatenate(
        [np.arange(len(a)) if each.groups is None else each.groups for each in (result, best)]
    )
    error = 2 * error_of_mean(np.concatenate([a - a.mean(), b.mean() - b]), groups)
    return Estimate(result.estimate.value - best.estimate.value, error, len(a), count(groups))


def report(scores: Scores, names: Sequence[str], directory: Path) -> str:
    """Return a table of all scores with their differences from the best, and the best of each.

    Write it to `sweep_<names>.txt`, with a plot of each score beside it. names: of what is swept.
    """
    path = make_directory(directory, "evaluation results") / f"sweep_{'_'.join(names)}.txt"
    head = "".join(f"{name:>12}" for name in names)
    lines = ["".join(f"{getattr(point, name)!s:>12}" for name in names) for point, _ in scores]
    ends = []
    for results in zip(*(results for _, results in scores), strict=True):
        score = results[0].score
        values = [distance_from_best(score, result.estimate.value) for result in results]
        best = values.index(min(values))
        head += f"{score:>24}{'from the best':>24}"
        series: Series = {}
        for i, ((point, _), result) in enumerate(zip(scores, results, strict=True)):
            away = None if i == best else difference(result, results[best])
            shown = "-" if away is None else str(away)
            lines[i] += f"{result.estimate!s:>24}{shown:>24}"
            label = ", ".join(f"{name} {getattr(point, name)}" for name in names[1:])
            series.setdefault(label, []).append((getattr(point, names[0]), result.estimate))
        place = ", ".join(f"{name} = {getattr(scores[best][0], name)}" for name in names)
        ends.append(f"best {score}: {results[best].estimate} at {place}")
        plot(path.with_name(f"{path.stem}_{score}.png"), names[0], score, series)
    last = "from the best: differences with errors paired by image"
    text = "\n".join([head, *lines, *ends, last])
    write_text(path, text + "\n")
    return f"{text}\ntable and plots: {path.with_suffix('')}*"


def plot(path: Path, axis: str, score: str, series: Series) -> None:
    """Write a picture of a score over the values of a swept setting `axis`, a line for each of the
    named series.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for label, points in series.items():
        values, estimates = zip(*points, strict=True)
        try:
            x: list[Any] = [float(value) for value in values]
        except ValueError:
            x = [str(value) for value in values]
        errors = [one.standard_error for one in estimates]
        error_bars(axes, x, [one.value for one in estimates], errors, label)
    if axis != "delta":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel=axis, ylabel=score)
    if any(series):
        axes.legend()
    save_figure(figure, path)
