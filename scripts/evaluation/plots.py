"""Plots of evaluations and of timings, with error bars."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from model_code.elbo import Estimate
from scripts.io import atomic_write

DPI = 150


def plot_by_level(
    path: Path,
    levels: Sequence[int],
    terms: Sequence[Estimate],
    squared_errors: Sequence[Estimate],
    floor: float,
    title: str,
) -> None:
    """Write a picture of two panels over the blur level k: squared errors at all `levels`, terms in nats at the last ones.

    There are as many squared errors as levels, and at most as many terms. Both panels are logarithmic. A line shows the
    `floor`, what a term is when the mean is right, if that is above 0.
    """
    figure = Figure(figsize=(7, 7), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    _error_bars(above, levels[len(levels) - len(terms) :], terms)
    if floor > 0:
        above.axhline(floor, color="gray", ls="--", lw=1, label=f"if the mean is right: {floor:.4g} nats")
        above.legend()
    above.set(title=title, ylabel="$L_{k-1}$ in nats", yscale="log")
    _error_bars(below, levels, squared_errors)
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    below.set(xlabel="blur level $k$", ylabel=r"$\|A_{k-1} u_0 - \mu(u_k, k)\|^2$", yscale="log")
    _save(figure, path)


def plot_sweep(path: Path, axis: str, score: str, series: dict[str, list[tuple[float, Estimate]]]) -> None:
    """Write a picture of a score over the values of a swept setting `axis`, a line for each of the named series."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for label, points in series.items():
        _error_bars(axes, [x for x, _ in points], [estimate for _, estimate in points], label)
    if axis != "delta":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel=axis, ylabel=score)
    if any(series):
        axes.legend()
    _save(figure, path)


@dataclass(frozen=True)
class Panel:
    """How long something takes as one number grows."""

    title: str
    x_label: str
    x: Sequence[int]
    """Ascending."""
    seconds: Sequence[Sequence[float]]
    """Several runs at each x."""
    power: int
    """What the time would grow with: x to this power."""


def plot_scaling(path: Path, panels: Sequence[Panel], title: str) -> None:
    """Write a picture of panels with logarithmic axes: medians with bars from fastest to slowest, and the expected growth."""
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(9, 3 * rows), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    for panel, axes in zip(panels, figure.subplots(rows, 2, squeeze=False).flat, strict=False):
        medians = [statistics.median(runs) for runs in panel.seconds]
        spread = [
            [median - min(runs) for median, runs in zip(medians, panel.seconds, strict=True)],
            [max(runs) - median for median, runs in zip(medians, panel.seconds, strict=True)],
        ]
        axes.errorbar(panel.x, medians, spread, fmt="o-", ms=3, lw=1, capsize=2, label="measured")
        expected = [medians[-1] * (x / panel.x[-1]) ** panel.power for x in panel.x]
        axes.plot(panel.x, expected, color="gray", ls="--", lw=1, label=f"in proportion to x{'²' if panel.power == 2 else ''}")
        axes.set(title=panel.title, xlabel=panel.x_label, ylabel="seconds", xscale="log", yscale="log")
        axes.set_xticks(panel.x, labels=map(str, panel.x))
        axes.minorticks_off()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    _save(figure, path)


def _error_bars(axes: Axes, x: Sequence[float], estimates: Sequence[Estimate], label: str = "") -> None:
    # An error that is not known, that of a single image, has no bar.
    errors = [e.standard_error if math.isfinite(e.standard_error) else math.nan for e in estimates]
    axes.errorbar(x, [estimate.value for estimate in estimates], errors, fmt="o-", ms=3, lw=1, capsize=2, label=label or None)
    axes.grid(alpha=0.3, which="both")


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=DPI)
