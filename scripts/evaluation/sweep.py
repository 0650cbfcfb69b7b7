"""Sweeps: the same evaluation at many settings, with the same random numbers, continued where it
was interrupted.
"""

import itertools
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from scripts.errors import UserError
from scripts.estimate import Estimate, count, error_of_mean
from scripts.evaluation.metrics import distance_from_best
from scripts.evaluation.plots import plot_sweep
from scripts.evaluation.results import Result, append_result
from scripts.runtime import distributed
from scripts.sampling.choice import Choice, parse_delta
from scripts.storage.files import atomic_write, make_directory, read_npz
from scripts.storage.record import Record

Value = float | str


@dataclass(frozen=True)
class Point(Choice):
    """The settings of an evaluation, some of which can be swept."""

    checkpoint: int = 0
    """Its number, 0 for the newest."""
    seed: int = 0


SWEPT = ("delta", "steps", "checkpoint", "seed")
Scores = Sequence[tuple[Point, list[Result]]]
Axes = dict[str, list[Value]]
"""The values of each swept setting, by its name, in the order in which they were given."""


class Evaluation(Protocol):
    """Scores of one point after another."""

    def record(self, *, checkpoint: int, choice: Choice, seed: int) -> Record:
        """All that they depend on."""

    def __call__(self, *, checkpoint: int, choice: Choice, seed: int) -> list[Result]:
        """The scores; of several processes only process 0 has them."""


def parse_sweeps(texts: Sequence[str]) -> Axes:
    """Each "name=first:last:step" (both ends included) or "name=a,b,..." as values: {"delta":
    [0.01, 0.011]}.

    Raises UserError for names and values that cannot be.
    """
    axes: Axes = {}
    for text in texts:
        name, _, values = text.partition("=")
        try:
            if name not in SWEPT or name in axes:
                raise ValueError
            axes[name] = (
                list(values.split(","))
                if name == "steps"
                else _values(values, float if name == "delta" else int)
            )
        except (ValueError, ArithmeticError):  # a UserError is a ValueError
            raise UserError(
                f"--sweep={text}: must be {', '.join(SWEPT)}, each once, =first:last:step or =a,b,..., of at least 0; "
                "delta may have names, such as calibrated, steps is as --steps, the others are integers"
            ) from None
    return axes


def _values(text: str, number: type[float] | type[int]) -> list[Value]:
    values: list[Value]
    if ":" in text:
        first, last, step = map(number, text.split(":"))
        count = math.floor((last - first) / step + 1e-9) + 1
        values = [
            number(round(first + i * step, 12)) for i in range(count)
        ]  # rounded to what one would type
    else:
        values = [
            parse_delta(part) if number is float else number(part) for part in text.split(",")
        ]
    if not values or any(
        not isinstance(value, str) and not 0 <= value < math.inf for value in values
    ):
        raise ValueError
    return list(dict.fromkeys(values))


def sweep_points(base: Point, axes: Axes) -> list[Point]:
    """All combinations, `base` giving what is not swept.

    Delta changes fastest: a bound needs no new network calls.
    """
    names = sorted(axes, key=lambda name: name == "delta")
    combinations = itertools.product(*(axes[name] for name in names))
    return [replace(base, **dict(zip(names, values, strict=True))) for values in combinations]  # type: ignore[arg-type]


@dataclass(frozen=True)
class Runner:
    """Evaluates points and appends their scores to logs.

    Finished points of a sweep are read from files instead.
    """

    evaluation: Evaluation
    directory: Path
    """Of the logs; the points of sweeps are in `points` below it."""
    param_name: str
    workdir: Path | None = None
    """The run directory of the model."""

    def run_point(self, point: Point) -> list[Result]:
        """Evaluate and log; of several processes only process 0 has scores."""
        started = time.monotonic()
        results = self.evaluation(checkpoint=point.checkpoint, choice=point, seed=point.seed)
        seconds = time.monotonic() - started
        for result in results:
            if self.workdir is not None:
                result.settings["checkpoint"] = point.checkpoint
            append_result(
                self.directory,
                result,
                param_name=self.param_name,
                seconds=seconds,
                workdir=self.workdir,
            )
            print(result, flush=True)
        return results

    def run(self, points: Sequence[Point]) -> Scores:
        """The scores of all points, in process 0.

        All records are made first, so that an error in one shows at once.
        """
        records = [
            self.evaluation.record(checkpoint=p.checkpoint, choice=p, seed=p.seed) for p in points
        ]
        files = distributed.from_main(
            [self.directory / "points" / f"{record.key}.npz" for record in records]
        )
        done = distributed.from_main([file.exists() for file in files])
        print(f"sweep of {len(points)} points, {sum(done)} of them in {self.directory}", flush=True)
        for i, (point, record, file, is_done) in enumerate(
            zip(points, records, files, done, strict=True)
        ):
            if not is_done:
                print(f"[{i + 1}/{len(points)}] {point}", flush=True)
                results = self.run_point(point)
                weights = record.weights.get("weights_crc32")
                if any(result.settings.get("weights_crc32") != weights for result in results):
                    raise UserError(
                        f"{point}: the checkpoint changed while it was evaluated; name one with checkpoint=n"
                    )
                if distributed.is_main():
                    _write_point(file, results)
        return (
            [(point, _read_point(file)) for point, file in zip(points, files, strict=True)]
            if distributed.is_main()
            else []
        )


def _write_point(file: Path, results: list[Result]) -> None:
    """All results of a point in one file, their values by image as arrays."""
    make_directory(file.parent, "evaluation results")
    arrays: dict[str, Any] = {
        result.score: result.per_image for result in results if result.per_image is not None
    }
    arrays |= {
        f"{score}_groups": result.groups
        for result in results
        if (score := result.score) in arrays and result.groups is not None
    }
    text = json.dumps(
        [asdict(replace(result, per_image=None, groups=None, picture=None)) for result in results]
    )
    with atomic_write(file) as temporary:
        np.savez(temporary, results=np.array(text), **arrays)


def _read_point(file: Path) -> list[Result]:
    arrays = read_npz(file)
    rows = json.loads(str(arrays["results"]))
    for row in rows:
        row["estimate"] = Estimate(**row["estimate"])
        row["per_image"], row["groups"] = (
            arrays.get(row["score"]),
            arrays.get(f"{row['score']}_groups"),
        )
    return [Result(**row) for row in rows]


def difference(result: Result, best: Result) -> Estimate | None:
    """How far a result is from another, with the error of the difference paired by image; None
    where that is not known.

    With the same random numbers most of the variation between images cancels out. Of samples in
    groups it is paired by group.
    """
    a, b = result.per_image, best.per_image
    if a is None or b is None or len(a) != len(b) or len(a) < 2:
        return None
    groups = [np.arange(len(a)) if each.groups is None else each.groups for each in (result, best)]
    together = np.concatenate(groups)
    error = 2 * error_of_mean(np.concatenate([a - a.mean(), b.mean() - b]), together)
    return Estimate(result.estimate.value - best.estimate.value, error, len(a), count(together))


def report(scores: Scores, axes: Axes, directory: Path) -> str:
    """A table of all scores with their differences from the best, and the best of each; also
    written to `sweep_<axes>.txt`.

    Each score has a plot beside it. Returns the text.
    """
    first, *others = names = list(axes)
    path = make_directory(directory, "evaluation results") / f"sweep_{'_'.join(names)}.txt"
    best = {}
    for i, score in enumerate(result.score for result in scores[0][1]):
        found = [(point, results[i]) for point, results in scores]
        best[score] = min(
            found, key=lambda pair: distance_from_best(pair[1].score, pair[1].estimate.value)
        )
        series: dict[str, list[tuple[Value, Estimate]]] = {}
        for point, result in found:
            label = ", ".join(f"{name} {getattr(point, name)}" for name in others)
            series.setdefault(label, []).append((getattr(point, first), result.estimate))
        plot_sweep(path.with_name(f"{path.stem}_{score}.png"), first, score, series)
    lines = [
        "".join(f"{name:>12}" for name in names)
        + "".join(f"{score:>24}{'from the best':>24}" for score in best)
    ]
    for point, results in scores:
        line = "".join(f"{getattr(point, name)!s:>12}" for name in names)
        for result in results:
            away = (
                None
                if point == best[result.score][0]
                else difference(result, best[result.score][1])
            )
            line += f"{result.estimate!s:>24}{'-' if away is None else str(away):>24}"
        lines.append(line)
    for score, (point, result) in best.items():
        lines.append(
            f"best {score}: {result.estimate} at {', '.join(f'{name} = {getattr(point, name)}' for name in names)}"
        )
    lines.append("from the best: differences with errors paired by image")
    text = "\n".join(lines)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n")
    return f"{text}\ntable and plots: {path.with_suffix('')}*"
