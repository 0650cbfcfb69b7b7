"""The parts of a run's page, each as HTML; "" where there is nothing to show. Whatever comes from a file is escaped."""

import json
import math
import string
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ml_collections import ConfigDict

from configs import default
from scripts.config import leaves, to_json, validate
from scripts.errors import UserError
from scripts.tools.charts import Point, Series, line_chart, number
from scripts.tools.embedding import clip, picture
from scripts.tools.run_directory import Row, RunDirectory, finite

MOST_SAMPLING_TIMES = 12
MOST_SETS = 6
"""Of those that sample.py drew: the newest ones. With `embedding`'s limits the page stays below 5 MB."""
MOST_SCORES = 60
MOST_MARKS = 20


def time_of(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def header(contents: RunDirectory) -> str:
    """How far the run is, what one should know at once, and the key facts."""
    step, total = contents.step, contents.setting("training.n_iters")
    parts = []
    if finite(total) and total > 0:
        done = min(1.0, step / total)
        state = "finished" if step >= total else f"{math.floor(1000 * done) / 10:g}%"
        parts.append(
            f'<div class="progress" role="progressbar" aria-label="training steps" aria-valuemin="0" aria-valuemax="{total}" '
            f'aria-valuenow="{step}"><div style="width:{done:.1%}"></div></div>\n'
            f'<p class="status"><span><b>Step {step:,}</b> of {total:,}, {state}</span>{_left(contents, total)}</p>'
        )
    else:
        parts.append(f'<p class="status"><b>Step {step:,}</b></p>')
    parts += [f'<p class="notice">{escape(notice)}</p>' for notice in _notices(contents)]
    facts = [
        f"<div><dt>{name}</dt><dd><b>{escape(value)}</b><small>{escape(detail)}</small></dd></div>"
        for name, value, detail in _facts(contents)
        if value
    ]
    return "\n".join([*parts, "<dl>", *facts, "</dl>"])


def _left(contents: RunDirectory, total: float) -> str:
    """Time to go at the last speed, evaluation and samples not counted."""
    from scripts.progress import duration

    rate, batch_size = contents.last("images_per_second").get("images_per_second"), contents.setting("training.batch_size")
    if not rate or rate < 0 or not finite(batch_size) or contents.step >= total:
        return ""
    return f'<span class="quiet">about {duration((total - contents.step) * batch_size / rate)} to go at this speed</span>'


def _notices(contents: RunDirectory) -> list[str]:
    notices = []
    bad = [row["step"] for row in contents.rows for key in ("loss", "eval_loss") if key in row and not finite(row[key])]
    if bad:
        notices.append(
            f"The loss is not a finite number in {len(bad):,} of {len(contents.rows):,} rows, first at step {bad[0]:,}."
        )
    unreadable = contents.last("unreadable_images").get("unreadable_images", 0)
    if unreadable:
        notices.append(f"{unreadable:,.0f} images could not be read and were skipped; the training log names them.")
    if not contents.rows and not contents.samples:
        notices.append("Nothing to show yet: the first row of metrics comes after training.log_freq steps.")
    return notices


def _facts(contents: RunDirectory) -> Iterable[tuple[str, str, str]]:
    """(name, value, detail); a value that is not known is empty."""
    held_out, training, speed = (contents.last(key) for key in ("eval_loss", "loss", "images_per_second"))
    if held_out:
        error, count = held_out.get("eval_loss_standard_error"), held_out.get("eval_num_images")
        detail = [f"± {number(error, 2)}"] if finite(error) else []
        detail += [f"N = {count:,.0f}"] if finite(count) else []
        yield "Held-out loss", number(held_out["eval_loss"], 3), ", ".join([*detail, f"step {held_out['step']:,}"])
    if training:
        yield "Training loss", number(training["loss"], 3), f"step {training['step']:,}"
    if speed:
        batch_size = contents.setting("training.batch_size")
        yield "Images per second", number(speed["images_per_second"], 3), f"batches of {batch_size}" if batch_size else ""
    settings: dict[str, Any] = {key.replace(".", "_"): _shown(value) for key, value in leaves(contents.config)}
    described = string.Template("${data_image_size}x${data_image_size}x$data_num_channels")
    yield "Data", settings.get("data_dataset", ""), _filled(described, settings)
    described = string.Template("$model_model_channels x $model_channel_mult channels")
    yield "Parameters", _num_parameters(contents.config), _filled(described, settings)
    described = string.Template("up to $model_blur_sigma_max pixels, sigma $model_sigma")
    yield "Blur levels", settings.get("model_K", ""), _filled(described, settings)
    yield "Seed", settings.get("seed", ""), ""
    if contents.written:
        day, clock, zone = time_of(contents.written).split()
        yield "Last row written", f"{clock} {zone}", day


def _filled(template: string.Template, settings: dict[str, Any]) -> str:
    return template.substitute(settings) if set(template.get_identifiers()) <= settings.keys() else ""


def _num_parameters(config: dict[str, Any]) -> str:
    """Weights of the network, or "" for a configuration of another version."""
    from scripts.training.plan import Work  # imports PyTorch, which mistyped flags need not wait for

    parsed = ConfigDict(config)
    try:
        validate(parsed)
    except (UserError, TypeError):  # a text where a number should be compares with none
        return ""
    return f"{Work.of(parsed).parameters / 1e6:.3g}M"


def samples(contents: RunDirectory) -> str:
    """The newest start, process and result, and the results of earlier sampling times."""
    if not contents.samples:
        return ""
    newest, directory = max(contents.samples.items())
    figures = []
    for step in reversed(evenly(list(contents.samples), MOST_SAMPLING_TIMES)):
        figures.append(_picture(contents.samples[step] / "final.png", f"Samples at step {step:,}"))
    cards = [
        _picture(directory / "init.png", "Where samples start: blurred training images with noise", "card"),
        _process(contents, directory, newest),
        f'<div class="card scrubber"><div class="strip" tabindex="0">{"".join(figures)}</div>'
        "<noscript>Scroll sideways for earlier ones.</noscript></div>",
    ]
    return f'<div class="pictures">{"".join(cards)}</div>'


def evenly(items: Sequence[int], most: int) -> list[int]:
    """At most `most` (at least 2) of the items, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _picture(path: Path, caption: str, kind: str = "") -> str:
    """A figure, or "" if there is no such image or it cannot be read."""
    try:
        source = picture(path)
    except OSError:
        return ""
    caption = escape(caption)
    return f'<figure class="{kind}"><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'


def _process(contents: RunDirectory, directory: Path, step: int) -> str:
    kind, source = clip(directory)
    caption = f"The reverse process at step {step:,}: from blur to images"
    if kind == "video":
        # Without `autoplay`: the script starts it for those who have not asked for less motion.
        shown = f'<video src="{source}" controls muted loop playsinline aria-label="{caption}"></video>'
    elif kind == "image":
        still = f'<source media="(prefers-reduced-motion: reduce)" srcset="{picture(directory / "final.png")}">'
        shown = f'<picture>{still}<img src="{source}" alt="{caption}"></picture>'
    else:
        existing = [directory / name for name in ("process.mp4", "process.gif") if (directory / name).is_file()]
        if not existing:
            return ""
        link = quote(str(existing[0].relative_to(contents.path)))
        return f'<div class="card"><p>The clip of the process is too large for this page: <a href="{link}">{link}</a></p></div>'
    return f'<figure class="card process">{shown}<figcaption>{caption}</figcaption></figure>'


def curves(contents: RunDirectory) -> str:
    """Charts of losses, learning rate, gradient norm and speed over the steps, with marks where the run was resumed."""
    rows = contents.rows
    marks = sorted({row["step"] for row in rows if "event" in row and row["step"] > 0})[-MOST_MARKS:]
    bands = list(dict.fromkeys(key for row in rows for key in row if key.startswith("loss_levels_")))
    by_level = [
        Series(band.removeprefix("loss_levels_").replace("_to_", "-"), _points(rows, band), 1 + i % 5, band=False)
        for i, band in enumerate(bands)
    ]
    unit = "squared error per image"
    return (
        '<p class="quiet">Over training steps. Shaded: one standard error around the held-out loss (of averaged weights); '
        "elsewhere the range of the rows behind each point of the line.</p>\n"
        '<div class="charts">\n'
        + line_chart(
            "Loss",
            unit,
            [
                Series("training", _points(rows, "loss"), 1),
                Series("held out", _points(rows, "eval_loss", "eval_loss_standard_error"), 2),
            ],
            log=True,
            marks=marks,
        )
        + line_chart("Loss by blur level", f"{unit}; 1 is the sharpest", by_level, log=True, marks=marks)
        + line_chart("Learning rate", "", [Series("", _points(rows, "lr"), 3)], marks=marks)
        + line_chart("Gradient norm", "before clipping", [Series("", _points(rows, "grad_norm"), 4)], log=True, marks=marks)
        + line_chart("Speed", "training images per second", [Series("", _points(rows, "images_per_second"), 5)], marks=marks)
        + "</div>"
        if any("loss" in row or "eval_loss" in row for row in rows)
        else ""
    )


def _points(rows: Sequence[Row], key: str, error_key: str = "") -> list[Point]:
    """The finite values of `key`, with the standard error in `error_key` as their band."""
    points = []
    for row in rows:
        value, error = row.get(key), row.get(error_key)
        if isinstance(value, int | float) and finite(value):
            band = error if isinstance(error, int | float) and finite(error) else 0.0
            points.append(Point(row["step"], value, value - band, value + band))
    return points


SETTINGS_OF_SCORES: tuple[tuple[str, Callable[[Row], object]], ...] = (
    ("Step", lambda row: row.get("checkpoint_step")),
    ("δ", lambda row: row.get("delta")),
    ("Seed", lambda row: row.get("seed")),
    ("Against", lambda row: row.get("reference", row.get("dataset_split"))),
    ("Features", lambda row: row.get("features_extractor")),
    ("Held-out images get", lambda row: f"{row['floor']:.4g}" if finite(row.get("floor")) else None),
)


def scores(contents: RunDirectory) -> str:
    """A table of the newest scores, the newest first."""
    if not contents.scores:
        return ""
    head = ["Score", "Value", "N", *(name for name, _ in SETTINGS_OF_SCORES), "Finished"]
    lines = []
    for row in reversed(contents.scores[-MOST_SCORES:]):
        value, error, count = row.get("value"), row.get("standard_error"), row.get("num_images")
        shown = f"{value:.6g}" if isinstance(value, int | float) else str(value)
        shown += f" ± {error:.2g}" if isinstance(error, int | float) else ""
        cells = [
            f"<b>{escape(shown)}</b> {escape(str(row.get('unit', '')))}",
            escape(f"{count:,}" if isinstance(count, int) else ""),
            *(escape(_shown(find(row))) for _, find in SETTINGS_OF_SCORES),
            escape(str(row.get("finished", ""))[:16].replace("T", " ")),
        ]
        lines.append(f'<tr><th scope="row">{escape(str(row.get("score")))}</th>{"".join(f"<td>{c}</td>" for c in cells)}</tr>')
    headings = "".join(f'<th scope="col">{name}</th>' for name in head)
    return (
        '<div class="card scroll" tabindex="0" role="region" aria-label="Table of scores"><table>'
        f"<thead><tr>{headings}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def more_samples(contents: RunDirectory) -> str:
    """What sample.py drew, the newest first."""
    widths = {"final.png": "card", "interpolation.png": "card wide"}
    found = [path for name in widths for path in contents.path.glob(f"additional_samples/*/*/{name}") if path.is_file()]
    found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    figures = [_picture(path, ", ".join(path.parts[-3:-1]).replace("_", " "), widths[path.name]) for path in found[:MOST_SETS]]
    return f'<div class="pictures drawn">{"".join(figures)}</div>' if any(figures) else ""


def events(contents: RunDirectory) -> str:
    """Starts, interruptions and whatever else is noted in rows with an "event"."""
    events = [row for row in contents.rows if "event" in row]
    if not events:
        return ""
    lines = []
    for row in events:
        rest = ", ".join(f"{key} {_shown(value)}" for key, value in row.items() if key not in ("step", "event"))
        lines.append(
            f'<tr><td>{row["step"]:,}</td><th scope="row">{escape(str(row["event"]))}</th><td>{escape(rest)}</td></tr>'
        )
    return (
        f"<details><summary>{len(events)} events, the last: {escape(str(events[-1]['event']))}</summary>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of events"><table>'
        '<thead><tr><th scope="col">Step</th><th scope="col">Event</th><th scope="col">Details</th></tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></details>"
    )


def configuration(contents: RunDirectory) -> str:
    """A table for each section, with what differs from configs/default.py marked."""
    if not contents.config:
        return ""
    defaults = dict(leaves(json.loads(to_json(default.get_config()))))
    sections: dict[str, list[tuple[str, str, object]]] = {}
    for key, value in leaves(contents.config):
        section, _, name = key.rpartition(".")
        sections.setdefault(section or "general", []).append((key, name, value))
    tables = []
    for section, entries in sections.items():
        lines, changed = [], 0
        for key, name, value in entries:
            shown, mark = escape(_shown(value)), ""
            if value != defaults.get(key):
                changed += 1
                mark = ' class="changed"'
                shown += f"<small>default {escape(_shown(defaults[key])) if key in defaults else 'absent'}</small>"
            lines.append(f'<tr{mark}><th scope="row">{escape(name)}</th><td>{shown}</td></tr>')
        tables.append(
            f'<details><summary><b>{escape(section)}</b> <span class="quiet">{changed} of {len(entries)} keys differ from the '
            f"defaults</span></summary><table><tbody>{''.join(lines)}</tbody></table></details>"
        )
    return f'<div class="config">{"".join(tables)}</div>'


def _shown(value: object) -> str:
    """A value of a configuration or a row as one would write it."""
    if value is None:
        return ""
    if isinstance(value, list):
        return f"({', '.join(map(_shown, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, str):
        return value or '""'
    return f"{value:.10g}" if isinstance(value, float) else str(value)
