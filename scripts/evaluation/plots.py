"""Plots of evaluations, with error bars."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from scripts.estimate import Estimate
from scripts.storage.files import atomic_write

DPI = 150


@dataclass(frozen=True)
class LevelRow:
    """One row of the per-level table: means over the images that were looked at at level k."""

    k: int
    error: Estimate
    """||A_{k-1} u_0 - mu(u_k, k)||^2 for heat dissipation, else NaN."""
    term: Estimate
    """L_{k-1} in nats, for k = 1 the reconstruction term L_0."""
    without_errors: float
    """What the term would be without errors, the part of the sampling noise alone; NaN as well."""


def plot_by_level(path: Path, rows: Sequence[LevelRow], title: str) -> None:
    """Write a picture of panels over the blur level k: terms of the bound for k > 1 and, where they
    are known, squared errors for all k.

    Both are logarithmic. A line shows what the terms would be if the network made no errors, where
    that is above 0.
    """
    figure = Figure(figsize=(7, 7), layout="constrained")
    has_errors = any(math.isfinite(row.error.value) for row in rows)
    panels = figure.subplots(1 + has_errors, 1, sharex=True, squeeze=False)[:, 0]
    above, lowest = panels[0], panels[-1]
    k = [row.k for row in rows]
    terms = rows[1:]  # the first row is the reconstruction term, which may be negative
    _error_bars(above, k[1:], [row.term for row in terms])
    if any(row.without_errors > 0 for row in terms):
        least = [row.without_errors for row in terms]
        above.plot(k[1:], least, color="gray", ls="--", lw=1, label="without errors of the network")
        above.legend()
    above.set(title=title, ylabel="$L_{k-1}$ in nats", yscale="log")
    if has_errors:
        _error_bars(lowest, k, [row.error for row in rows])
        lowest.set(ylabel=r"$\|A_{k-1} u_0 - \mu(u_k, k)\|^2$", yscale="log")
    lowest.xaxis.set_major_locator(MaxNLocator(integer=True))
    lowest.set(xlabel="level $k$")
    _save(figure, path)


def plot_sweep(
    path: Path, axis: str, score: str, series: dict[str, list[tuple[float | str, Estimate]]]
) -> None:
    """Write a picture of a score over the values of a swept setting `axis`, a line for each of the
    named series.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    place = float if all(_is_number(x) for points in series.values() for x, _ in points) else str
    for label, points in series.items():
        _error_bars(
            axes, [place(x) for x, _ in points], [estimate for _, estimate in points], label
        )
    if axis != "delta":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel=axis, ylabel=score)
    if any(series):
        axes.legend()
    _save(figure, path)


def _is_number(value: float | str) -> bool:
    with contextlib.suppress(ValueError):
        return math.isfinite(float(value))
    return False


def _error_bars(
    axes: Axes, x: Sequence[float | str], estimates: Sequence[Estimate], label: str = ""
) -> None:
    # An unknown error, that of a single image, has no bar.
    errors = [e.standard_error if math.isfinite(e.standard_error) else math.nan for e in estimates]
    values = [estimate.value for estimate in estimates]
    axes.errorbar(x, values, errors, fmt="o-", ms=3, lw=1, capsize=2, label=label or None)
    axes.grid(alpha=0.3, which="both")


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=DPI)
