"""The page about a run, index.html in its directory: a single file that needs no network."""

import base64
import io
import json
import math
import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, FileSystemLoader
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from configs import default
from scripts.config.load import RUN_CONFIG, flatten, to_json
from scripts.errors import UserError
from scripts.evaluation.results import RESULTS, shown
from scripts.runtime.progress import duration
from scripts.storage.files import read_json_lines, write_text
from scripts.storage.record import now

PAGE, WRITTEN = "index.html", "by python -m scripts.tools.report"
MAX_SAMPLING_TIMES, MAX_SETS = 8, 6
MAX_PIXELS = 800
"""Larger pictures are scaled down to this many pixels in width and height."""
MAX_BYTES = 3_000_000
"""Larger animations are left out."""
MAX_POINTS = 500
"""Longer curves show the means of this many blocks of rows."""
NAMES = {
    "eval_loss": "held-out loss",
    "loss": "training loss",
    "images_per_second": "images per second",
}
"""For people, of keys of metrics.jsonl that are shown as numbers."""
Row = dict[str, Any]
Picture = tuple[str, Path, str]
"""Caption, file and data URI."""


def write_page(workdir: Path, out: Path | None = None) -> Path:
    """Write the page about what is in the run directory so far, to `out` or `index.html` there.

    Returns its path. Raises UserError if `workdir` is not a run directory.
    """
    if not (workdir / RUN_CONFIG).exists():
        raise UserError(f"{workdir}: not a run directory, it has no {RUN_CONFIG}")
    path = out or workdir / PAGE
    if path.suffix != ".html" or (path.exists() and WRITTEN not in path.read_text(errors="ignore")):
        raise UserError(f"--out={path}: must end in .html, and be new or a page about a run")
    config = json.loads((workdir / RUN_CONFIG).read_text())
    provenance = config.pop("provenance", {})
    values = dict(flatten(config))
    rows = [row for row in read_json_lines(workdir / "metrics.jsonl") if _finite(row.get("step"))]
    rows.sort(key=lambda row: row["step"])
    metrics = [row for row in rows if "event" not in row]
    drawn = _sampling_times(workdir)
    drawn_later = _newest(workdir, "additional_samples/*/*/*.png")
    files = ("metrics.jsonl", RUN_CONFIG, RESULTS, "samples", "additional_samples", "checkpoints")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short"] = _short
    environment.filters["sampling"] = shown
    environment.filters["link"] = lambda file: os.path.relpath(file, path.parent)
    page = environment.get_template("page.html.jinja").render(
        title=workdir.resolve().name,
        time=now(),
        step=max([0, *(step for step, _ in drawn), *(row["step"] for row in rows)]),
        n_iters=values.get("training.n_iters"),
        summary=_summary(values, rows, provenance),
        numbers=_last_numbers(metrics),
        nonfinite=[
            row["step"]
            for row in rows
            if not all(_finite(row.get(key, 0)) for key in ("loss", "eval_loss"))
        ],
        first=_first_pictures(workdir, drawn),
        samples=_pictures([(f"step {step}", folder / "final.png") for step, folder in drawn[:-1]]),
        extra=_pictures([(path.parent.name, path) for path in drawn_later]),
        curves=_curves(metrics),
        scores=read_json_lines(workdir / RESULTS)[::-1],
        measures=_pictures([(path.stem, path) for path in _newest(workdir, "evaluation/*.png")]),
        events=[row for row in rows if "event" in row],
        provenance=provenance,
        config=values,
        defaults=dict(flatten(json.loads(to_json(default.get_config())))),
        files=[workdir / name for name in files if (workdir / name).exists()],
    )
    write_text(path, page)
    return path


def _sampling_times(workdir: Path) -> list[tuple[int, Path]]:
    """Steps at which training drew samples, with their folders: at most `MAX_SAMPLING_TIMES`."""
    folders = {
        path.parent.name.removeprefix("iter_"): path.parent
        for path in workdir.glob("samples/iter_*/final.png")
    }
    drawn = sorted((int(step), folder) for step, folder in folders.items() if step.isdecimal())
    count = min(len(drawn), MAX_SAMPLING_TIMES)
    return [drawn[round(i)] for i in np.linspace(0, len(drawn) - 1, count)]


def _summary(values: Row, rows: list[Row], provenance: Row) -> list[str]:
    """Data, network, device, duration and commit in words, as far as they are known."""
    facts: Row = {}
    for row in rows:
        facts |= row if row.get("event") == "started" else {}
    size = values.get("data.image_size")
    height, width = size if isinstance(size, list) else (size, size)
    data = f"{values.get('data.dataset')}, {height} x {width} x {values.get('data.num_channels')}"
    if "training_images" in facts:
        data += f", {facts['training_images']:,} images"
    words = [data, f"process {values.get('model.process')}"]
    if "parameters" in facts:
        words.append(f"{facts['parameters'] / 1e6:.2f}M parameters")
    if "device" in provenance:
        words.append(str(provenance["device"]))
    logged = [row for row in rows if _finite(row.get("images_per_second"))]
    steps = [0, *(row["step"] for row in logged)]
    size = values.get("training.batch_size")
    if logged and _finite(size):
        speeds = [row["images_per_second"] for row in logged]
        seconds = sum(
            (b - a) * size / speed
            for (a, b), speed in zip(pairwise(steps), speeds, strict=True)
            if speed > 0
        )
        words.append(f"{duration(seconds)} in training steps")
    if provenance.get("commit"):
        words.append(f"commit {str(provenance['commit'])[:10]}")
    return words


def _last_numbers(rows: list[Row]) -> list[tuple[str, Any, Any, int]]:
    """Name, last value, its standard error or None, and step of what `NAMES` has."""
    last = {key: row for row in rows for key in row}
    return [
        (name, last[key][key], last[key].get(f"{key}_standard_error"), last[key]["step"])
        for key, name in NAMES.items()
        if key in last
    ]


def _first_pictures(workdir: Path, drawn: list[tuple[int, Path]]) -> list[Picture]:
    """Return what the network sees, initial states, the newest samples and how they come about."""
    wanted = [("data", workdir / "data.png")]
    if drawn:
        step, folder = drawn[-1]
        wanted += [
            (f"step {step}", folder / "final.png"),
            ("the process", folder / "process.gif"),
            ("initial states", folder / "init.png"),
        ]
    return _pictures(wanted)


def _newest(workdir: Path, pattern: str) -> list[Path]:
    """At most `MAX_SETS` pictures, the newest first; of a set of samples the one of all."""
    others = ("init", "init_input", "base_sample")
    paths = [
        path
        for path in workdir.glob(pattern)
        if not path.stem.isdecimal() and path.stem not in others
    ]
    return sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)[:MAX_SETS]


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _short(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value


def _pictures(wanted: list[tuple[str, Path]]) -> list[Picture]:
    """Return those that can be read."""
    shown = [(caption, path, _data_uri(path)) for caption, path in wanted]
    return [(caption, path, data) for caption, path, data in shown if data is not None]


def _data_uri(path: Path) -> str | None:
    """Return the picture as a data URI, an animation as it is, others in PNG; None for what is
    none.
    """
    kind, data = "png", io.BytesIO()
    try:
        if path.suffix == ".gif" and path.stat().st_size <= MAX_BYTES:
            kind, data = "gif", io.BytesIO(path.read_bytes())
        elif path.suffix != ".gif":
            with Image.open(path) as image:
                image.thumbnail((MAX_PIXELS, MAX_PIXELS))
                image.save(data, "png", optimize=True)
    except OSError:
        return None
    if not data.getvalue():
        return None
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"


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
        axes.plot(step, value, label=label, marker="o" if len(step) == 1 else None)
        axes.fill_between(step, value - error, value + error, alpha=0.3)
