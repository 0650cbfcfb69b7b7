"""Plots of evaluations, with error bars."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from model_code.elbo import Estimate
from scripts.files import replacing
from scripts.image_sources import ImageSource
from scripts.visuals import grid

if TYPE_CHECKING:
    from scripts.memorization import Comparison

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


def plot_scaling(path: Path, series: Sequence[tuple[str, str, dict[int, float]]]) -> None:
    """Write a picture with a panel for each of `series`: title, name of the x axis, seconds by x; both axes logarithmic.

    A dashed line through the last point shows what growth in proportion would be.
    """
    columns = 3
    figure = Figure(figsize=(10, 3 * -(-len(series) // columns)), layout="constrained")
    panels = figure.subplots(-(-len(series) // columns), columns, squeeze=False).flat
    for axes, (title, name, seconds) in zip(panels, series, strict=False):
        x, y = list(seconds), list(seconds.values())
        axes.plot(x, [y[-1] * value / x[-1] for value in x], "--", color="gray", lw=1, label="in proportion")
        axes.plot(x, y, "o-", ms=4)
        axes.set(title=title, xlabel=name, ylabel="seconds", xscale="log", yscale="log")
        axes.set_xticks(x, [str(value) for value in x])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    for axes in panels:  # those left over
        axes.axis("off")
    _save(figure, path)


def plot_memorization(
    path: Path, samples: torch.Tensor, train: ImageSource, comparisons: "Sequence[Comparison]", title: str, columns: int = 12
) -> None:
    """Write a picture: samples above their nearest training images, and how far these are, as for held-out images.

    samples: uint8 (N, C, H, W). A pair of rows and a panel for each comparison; those samples are shown that are nearest.
    """
    figure = Figure(figsize=(9, 4.2 * len(comparisons)), layout="constrained")
    figure.suptitle(title)
    rows = figure.subplots(2 * len(comparisons), 1, height_ratios=[1, 1.4] * len(comparisons), squeeze=False)[:, 0]
    for comparison, above, below in zip(comparisons, rows[::2], rows[1::2], strict=True):
        closest = comparison.samples.distance.argsort()[:columns]
        found = torch.from_numpy(np.stack([train[int(i)] for i in comparison.samples.index[closest]]))
        both = torch.cat([samples[closest], found]) / 255
        above.imshow(grid(both, len(closest)))
        above.set(title=f"{comparison.space}: the {len(closest)} samples nearest to a training image, and below it that image")
        above.axis("off")
        for label, neighbours in (("samples", comparison.samples), ("held-out images", comparison.held_out)):
            distances = neighbours.distance.sort().values
            below.plot(distances, torch.arange(1, len(distances) + 1) / len(distances), label=label)
        below.set(xlabel="distance to the nearest training image", ylabel="part of images nearer", xlim=(0, None))
        below.grid(alpha=0.3)
        below.legend()
    _save(figure, path)


def _error_bars(axes: Axes, x: Sequence[float], estimates: Sequence[Estimate], label: str = "") -> None:
    # An error that is not known, that of a single image, has no bar.
    errors = [e.standard_error if math.isfinite(e.standard_error) else math.nan for e in estimates]
    axes.errorbar(x, [estimate.value for estimate in estimates], errors, fmt="o-", ms=3, lw=1, capsize=2, label=label or None)
    axes.grid(alpha=0.3, which="both")


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=DPI)
