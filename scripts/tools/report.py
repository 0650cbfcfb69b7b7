"""A page about a run: `index.html` in its directory, a single file that needs no network.

python -m scripts.tools.report WORKDIR

train.py runs this command when training ends. Run it again after sampling or evaluating to bring
the page up to date.
"""

import base64
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, FileSystemLoader
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from configs import default
from scripts.config.flags import Values, run
from scripts.config.load import flatten, to_json
from scripts.errors import UserError
from scripts.evaluation.results import RESULTS
from scripts.storage.files import atomic_write, read_json_lines
from scripts.storage.record import now

HERE = Path(__file__).parent
MAX_SAMPLING_TIMES, MAX_SETS = 12, 6
MAX_PIXELS = 800
"""Larger pictures are scaled down to this many pixels in width and height."""
MAX_POINTS = 500
"""Longer curves show the means of this many blocks of rows."""
Row = dict[str, Any]


def write_report(workdir: Path) -> Path:
    """Write `index.html` about what is in the run directory so far. Returns its path.

    Raises UserError if `workdir` is not a run directory.
    """
    if not (workdir / "config.json").exists():
        raise UserError(f"{workdir}: not a run directory, it has no config.json")
    config = json.loads((workdir / "config.json").read_text())
    rows = [row for row in read_json_lines(workdir / "metrics.jsonl") if _finite(row.get("step"))]
    rows.sort(key=lambda row: row["step"])
    final = {
        path.parent.name.removeprefix("iter_"): path
        for path in workdir.glob("samples/iter_*/final.png")
    }
    drawn = sorted((int(step), path) for step, path in final.items() if step.isdecimal())
    shown = (
        sorted({round(i) for i in np.linspace(0, len(drawn) - 1, MAX_SAMPLING_TIMES)})
        if drawn
        else []
    )
    extra = [
        path
        for name in ("final", "interpolation")
        for path in workdir.glob(f"additional_samples/*/*/{name}.png")
    ]
    extra.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    measures = sorted(
        workdir.glob("evaluation/*.png"), key=lambda path: path.stat().st_mtime, reverse=True
    )
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["short"] = lambda value: (
        f"{value:.5g}" if isinstance(value, float) else value
    )
    page = environment.get_template("report.html.jinja").render(
        title=workdir.resolve().name,
        time=now(),
        step=max([0, *(step for step, _ in drawn), *(row["step"] for row in rows)]),
        last={
            key: (value, row["step"])
            for row in rows
            if "event" not in row
            for key, value in row.items()
            if key != "step"
        },
        nonfinite=[
            row["step"]
            for row in rows
            if not all(_finite(row.get(key, 0)) for key in ("loss", "eval_loss"))
        ],
        start=_picture(drawn[-1][1].with_name("init.png")) if drawn else None,
        samples=[(drawn[i][0], _picture(drawn[i][1])) for i in reversed(shown)],
        extra=[(path.relative_to(workdir).parent, _picture(path)) for path in extra[:MAX_SETS]],
        curves=_curves(rows),
        scores=reversed(read_json_lines(workdir / RESULTS)),
        measures=[(path.stem, _picture(path)) for path in measures[:MAX_SETS]],
        events=[row for row in rows if "event" in row],
        provenance=config.pop("provenance", {}),
        config=dict(flatten(config)),
        defaults=dict(flatten(json.loads(to_json(default.get_config())))),
    )
    path = workdir / "index.html"
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _picture(path: Path) -> str | None:
    """The image as a data URI in PNG, None if it cannot be read."""
    data = io.BytesIO()
    try:
        with Image.open(path) as image:
            image.thumbnail((MAX_PIXELS, MAX_PIXELS))
            image.save(data, "png", optimize=True)
    except OSError:
        return None
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def _curves(rows: list[Row]) -> str | None:
    """Losses, learning rate and gradient norm over training steps as SVG; None without rows that
    have a loss.
    """
    if not any(_finite(row.get(key)) for row in rows for key in ("loss", "eval_loss")):
        return None
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    (losses, by_level), (rate, norm) = figure.subplots(2, 2)
    _line(losses, rows, "loss", "training")
    _line(
        losses, rows, "eval_loss", "held out, with one standard error", "eval_loss_standard_error"
    )
    for key in dict.fromkeys(
        key for row in rows for key in row if re.fullmatch(r"loss_levels_\d+_to_\d+", key)
    ):
        _line(by_level, rows, key, key.removeprefix("loss_levels_").replace("_to_", " to "))
    _line(rate, rows, "lr", "learning rate")
    _line(norm, rows, "grad_norm", "gradient norm before clipping")
    losses.set(title="Loss")
    by_level.set(title="Training loss by blur level (1 is the sharpest)")
    for axes in figure.axes:
        axes.set(xlabel="step")
        axes.grid(alpha=0.3)
        if axes is not rate and any(np.max(line.get_ydata()) > 0 for line in axes.lines):
            axes.set_yscale("log")
        if axes.lines:
            axes.legend(fontsize="small")
    svg = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none"}):  # text stays text
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return svg.getvalue()[svg.getvalue().index("<svg") :]  # without the XML header


def _line(axes: Axes, rows: list[Row], key: str, label: str, error_key: str = "") -> None:
    """Draw the finite values of `key` over the steps, with a band of plus and minus `error_key`
    where rows have it.
    """
    points = [
        (row["step"], row[key], row.get(error_key, math.nan))
        for row in rows
        if _finite(row.get(key))
    ]
    if points:
        blocks = np.array_split(np.array(points, float), min(len(points), MAX_POINTS))
        step, value, error = np.array([block.mean(0) for block in blocks]).T
        axes.plot(step, value, label=label, linewidth=1, marker="o" if len(step) == 1 else None)
        axes.fill_between(step, value - error, value + error, alpha=0.3)


def main(flags: Values) -> int:
    """Write the page of the run that the flag names."""
    print(f"report in {write_report(flags.workdir)}")
    return 0


if __name__ == "__main__":
    run("report", main, positional="workdir")
