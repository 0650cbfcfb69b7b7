"""Sweeps: the same evaluation at many settings, with the same random numbers, continued where it was interrupted.

Imports nothing heavy, so that a mistyped sweep is answered at once.
"""

import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from scripts import distributed
from scripts.errors import UserError
from scripts.evaluation.results import Result, append_line, append_result
from scripts.io import atomic_write, make_directory, read_json_lines

LOWER_IS_BETTER = {"ELBO", "BPD", "FID", "KID"}
"""Of the others (precision, recall, density, coverage) a higher value is the best."""
MOST_POINTS = 10_000


@dataclass(frozen=True)
class Point:
    """The settings that can be swept."""

    delta: float
    """Sampling noise, a standard deviation."""
    checkpoint: int
    """Its number, 0 for the newest."""
    seed: int

    def __str__(self) -> str:
        return f"delta {self.delta:g}, checkpoint {self.checkpoint}, seed {self.seed}"


Evaluate = Callable[[Point], list[Result]]
Axes = dict[str, list[float]]
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
    if math.prod(map(len, axes.values())) > MOST_POINTS:
        raise UserError(f"--sweep: more than {MOST_POINTS} points; take larger steps")
    return axes


def _values(text: str, values: str, whole: bool) -> list[float]:
    """The values of one sweep, without repetitions. Decimal arithmetic: 0.010:0.016:0.001 has seven of them, all round."""
    try:
        numbers = [Decimal(part) for part in values.replace(",", ":").split(":")]
        if ":" in values:
            first, last, step = numbers
            count = int((last - first) / step) + 1
            if step <= 0 or last < first or count > MOST_POINTS or "," in values:
                raise ValueError
            numbers = [first + i * step for i in range(count)]
        if any(not number.is_finite() or number < 0 or (whole and number % 1) for number in numbers):
            raise ValueError
    except (InvalidOperation, ArithmeticError, ValueError):
        kind = "integers" if whole else "numbers"
        raise UserError(f"--sweep={text}: must be first:last:step or a,b,..., {kind} of at least 0, step above 0") from None
    return list(dict.fromkeys(int(number) if whole else float(number) for number in numbers))


def sweep_points(base: Point, axes: Axes) -> list[Point]:
    """All combinations, `base` giving what is not swept. Delta changes fastest: a bound needs no new network calls."""
    names = sorted(axes, key=lambda name: name == "delta")
    combinations = itertools.product(*(axes[name] for name in names))
    return [Point(**{**asdict(base), **dict(zip(names, values, strict=True))}) for values in combinations]


def run_point(evaluate: Evaluate, point: Point, directory: Path, param_name: str, workdir: Path | None = None) -> list[Result]:
    """Evaluate, and append the scores, which only process 0 of several has, to the logs in `directory` and in `workdir`."""
    started = time.monotonic()
    results = evaluate(point)
    seconds = time.monotonic() - started
    for result in results:
        append_result(directory, result, param_name=param_name, seconds=seconds, workdir=workdir)
        print(result, flush=True)
    return results


def run_sweep(
    evaluate: Evaluate,
    points: Sequence[Point],
    directory: Path,
    request: Callable[[Point], dict[str, Any]],
    param_name: str,
    workdir: Path | None = None,
) -> list[tuple[Point, list[Result]]]:
    """The scores of all points. `request(point)` says, as plain data, what they depend on besides the point.

    Every finished point is a line of `sweep.jsonl` in `directory`; those with the same point and request are not computed
    again. All requests are made first, so that what is wrong with one of them shows at once. Process 0 keeps that file; the
    scores that the others get are none.
    """
    path = directory / "sweep.jsonl"
    keys = distributed.from_main([_key(asdict(point), request(point)) for point in points])
    done = {_key(row["point"], row["request"]): row["results"] for row in distributed.from_main(read_json_lines(path))}
    found = sum(key in done for key in keys)
    print(f"sweep of {len(points)} points" + (f", {found} of them in {path}" if found else ""), flush=True)
    scores = []
    for number, (point, key) in enumerate(zip(points, keys, strict=True), 1):
        if key in done:
            results = [Result(**result) for result in done[key]]
        else:
            print(f"[{number}/{len(points)}] {point}", flush=True)
            results = run_point(evaluate, point, directory, param_name, workdir)
            if not distributed.is_main():
                continue
            row = {**json.loads(key), "results": [asdict(result) for result in results]}
            append_line(path, json.dumps(row))
        scores.append((point, results))
    return scores


def _key(point: dict[str, Any], request: dict[str, Any]) -> str:
    return json.dumps({"point": point, "request": request}, sort_keys=True)


def report(scores: Sequence[tuple[Point, list[Result]]], axes: Axes, directory: Path) -> str:
    """A table of all scores and a line for the best of each, also written to `sweep_<axes>.txt`, with a plot for each score.

    Returns the text.
    """
    from model_code.elbo import Estimate
    from scripts.evaluation.plots import plot_sweep

    make_directory(directory, "evaluation results")
    names = list(axes)
    stem = f"sweep_{'_'.join(names)}"
    kinds = [result.score for result in scores[0][1]]
    lines = ["  ".join([f"{name:>10}" for name in names] + [f"{kind:>24}" for kind in kinds])]
    for point, results in scores:
        cells = [f"{getattr(point, name):>10g}" for name in names]
        lines.append("  ".join(cells + [f"{_with_error(result):>24}" for result in results]))
    lines += [best_line(scores, kind, names) for kind in kinds]
    for kind in kinds:
        series: dict[str, list[tuple[float, Estimate]]] = {}
        for point, results in scores:
            result = next(r for r in results if r.score == kind)
            label = ", ".join(f"{name} {getattr(point, name):g}" for name in names[1:])
            error = math.inf if result.standard_error is None else result.standard_error
            series.setdefault(label, []).append((getattr(point, names[0]), Estimate(result.value, error)))
        plot_sweep(directory / f"{stem}_{kind}.png", names[0], kind, series)
    text = "\n".join(lines)
    with atomic_write(directory / f"{stem}.txt") as temporary:
        temporary.write_text(text + "\n")
    return f"{text}\ntable and plots: {directory / stem}*"


def best_line(scores: Sequence[tuple[Point, list[Result]]], score: str, names: Sequence[str]) -> str:
    """Which point has the best value of `score`."""
    candidates = [(point, result) for point, results in scores for result in results if result.score == score]
    sign = 1 if score in LOWER_IS_BETTER else -1
    point, result = min(candidates, key=lambda pair: sign * pair[1].value)
    where = ", ".join(f"{name} = {getattr(point, name):g}" for name in names)
    return f"best {score}: {_with_error(result)} at {where}"


def _with_error(result: Result) -> str:
    error = result.standard_error
    return f"{result.value:.6g}" + ("" if error is None or not math.isfinite(error) else f" +- {error:.2g}")
