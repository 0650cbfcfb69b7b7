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
from scripts.data.images import ImageSource
from scripts.io import replacing
from scripts.sampling.output import grid

if TYPE_CHECKING:
    from scripts.tools.memorization import Comparison

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


def plot_memorization(
    path: Path, samples: torch.Tensor, train: ImageSource, comparisons: "Sequence[Comparison]", title: str, columns: int = 12
) -> None:
    """Write a picture: samples above their nearest training images, and how far these are, as for held-out images.

    samples: uint8 (N, C, H, W). The first of them, then those nearest in each comparison with a panel of its distances; below a
    sample a row of training images for each comparison.
    """
    shown = min(columns, len(samples))
    heights = [0.5 + 0.75 * (1 + len(comparisons)), *[0.5 + 0.75 * (1 + len(comparisons)), 2.4] * len(comparisons)]
    figure = Figure(figsize=(9, sum(heights)), layout="constrained")
    figure.suptitle(title)
    top, *rows = figure.subplots(len(heights), 1, height_ratios=heights)
    spaces = ", then by ".join(comparison.space for comparison in comparisons)

    def show(axes: Axes, chosen: torch.Tensor, which: str) -> None:
        found = [train[int(i)] for comparison in comparisons for i in comparison.samples.index[chosen]]
        axes.imshow(grid(torch.cat([samples[chosen], torch.from_numpy(np.stack(found))]) / 255, shown))
        axes.set_title(f"{which}; below: the nearest training images by {spaces}", fontsize=9)
        axes.axis("off")

    show(top, torch.arange(shown), f"the first {shown} samples")
    for comparison, above, below in zip(comparisons, rows[::2], rows[1::2], strict=True):
        show(above, comparison.samples.distance.argsort()[:shown], f"the {shown} samples nearest by {comparison.space}")
        for label, neighbours in (("samples", comparison.samples), ("held-out images", comparison.held_out)):
            distances = neighbours.distance.sort().values
            below.plot(distances, torch.arange(1, len(distances) + 1) / len(distances), label=label)
        below.set(
            xlabel=f"distance to the nearest training image by {comparison.space}",
            ylabel="part of images nearer",
            xlim=(0, None),
        )
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
