"""A page about a run, index.html in its directory: one file that needs no network and nothing beside it.

python -m scripts.report WORKDIR

Training writes it with every set of samples; the command brings it up to date, also after sample.py and evaluate.py.
"""

import base64
import hashlib
import json
import math
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from absl import flags
from ml_collections import ConfigDict

from configs import default
from scripts.charts import Point, Series, line_chart, number
from scripts.config import leaves, run, to_json, validate
from scripts.embedding import clip, picture
from scripts.errors import UserError
from scripts.files import read_json_lines, replacing
from scripts.results import RESULTS

HERE = Path(__file__).parent
MOST_SAMPLING_TIMES = 12
MOST_SETS = 6
"""Of those that sample.py drew: the newest ones. With `embedding`'s limits the page stays below 5 MB."""
MOST_SCORES = 60
MOST_MARKS = 20

Row = dict[str, Any]


def main() -> int:
    """Write the page that the flags ask for."""
    if not flags.FLAGS.workdir:
        raise UserError("--workdir is missing: python -m scripts.report runs/mnist/quickstart")
    print(f"report in {write_report(Path(flags.FLAGS.workdir))}")
    return 0


def write_report(workdir: Path) -> Path:
    """Write `index.html` about what is in the run directory so far. Returns its path.

    Raises UserError if `workdir` is not a run directory or its config.json cannot be read.
    """
    contents = RunDirectory.read(workdir)
    script = (HERE / "report.js").read_text()
    template = string.Template((HERE / "report.html").read_text())
    page = template.substitute(
        title=escape(workdir.resolve().name),
        header=_header(contents),
        body="".join(
            f'<section aria-label="{heading}">\n<h2>{heading}</h2>\n{section}\n</section>\n'
            for heading, section in (
                ("Samples over training", _samples(contents)),
                ("Curves", _curves(contents)),
                ("Scores", _scores(contents)),
                ("More samples", _more_samples(contents)),
                ("Events", _events(contents)),
                ("Configuration", _configuration(contents)),
            )
            if section
        ),
        footer=f"Page written {_time(datetime.now(UTC).timestamp())} by <code>python -m scripts.report</code>",
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    path = workdir / "index.html"
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


@dataclass(frozen=True)
class RunDirectory:
    """What the page tells of, read from the files of a run."""

    path: Path
    config: dict[str, Any]
    """Its config.json, {} if there is none."""
    rows: list[Row]
    """Of metrics.jsonl, by step."""
    written: float | None
    """When metrics.jsonl was last written to, seconds since 1970."""
    samples: dict[int, Path]
    """The directory of every sampling time that has pictures, by step."""
    scores: list[Row]
    """What evaluate.py found, oldest first."""

    @classmethod
    def read(cls, path: Path) -> "RunDirectory":
        """Raises UserError if that is no run directory or its configuration cannot be read."""
        config_path, metrics_path = path / "config.json", path / "metrics.jsonl"
        if not config_path.exists() and not metrics_path.exists():
            raise UserError(f"--workdir={path}: no run directory, it has neither config.json nor metrics.jsonl")
        try:
            config = json.loads(config_path.read_text()) if config_path.exists() else {}
        except ValueError as error:
            raise UserError(f"{config_path}: this is not JSON ({error})") from None
        if not isinstance(config, dict):
            raise UserError(f"{config_path}: must hold sections of keys, as train.py writes it")
        rows = [row for row in read_json_lines(metrics_path) if isinstance(row, dict) and _finite(row.get("step"))]
        found = [(d.name.removeprefix("iter_"), d) for d in path.glob("samples/iter_*") if (d / "final.png").is_file()]
        return cls(
            path=path,
            config=config,
            rows=sorted(rows, key=lambda row: row["step"]),
            written=metrics_path.stat().st_mtime if rows else None,
            samples={int(step): directory for step, directory in sorted(found, key=_step) if step.isdecimal()},
            scores=[row for row in read_json_lines(path / RESULTS) if isinstance(row, dict)],
        )

    def setting(self, key: str) -> Any:
        """The value of "section.key" in the configuration, None if it is not there."""
        return dict(leaves(self.config)).get(key)

    def last(self, key: str) -> Row:
        """The last row with a finite number for `key`, {} if there is none."""
        return next((row for row in reversed(self.rows) if _finite(row.get(key))), {})

    @property
    def step(self) -> int:
        """How far training has come, as far as the files tell."""
        return int(max([0, *self.samples, *(row["step"] for row in self.rows)]))


def _step(found: tuple[str, Path]) -> int:
    return int(found[0]) if found[0].isdecimal() else -1


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def _header(contents: RunDirectory) -> str:
    """How far the run is, what one should know at once, and the key facts."""
    step, total = contents.step, contents.setting("training.n_iters")
    parts = []
    if _finite(total) and total > 0:
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


def _left(contents: RunDirectory, total: int) -> str:
    """Time to go at the last speed, evaluation and samples not counted."""
    from scripts.progress import duration

    rate, batch_size = contents.last("images_per_second").get("images_per_second"), contents.setting("training.batch_size")
    if not rate or rate < 0 or not _finite(batch_size) or contents.step >= total:
        return ""
    return f'<span class="quiet">about {duration((total - contents.step) * batch_size / rate)} to go at this speed</span>'


def _notices(contents: RunDirectory) -> list[str]:
    notices = []
    bad = [row["step"] for row in contents.rows for key in ("loss", "eval_loss") if key in row and not _finite(row[key])]
    if bad:
        notices.append(f"The loss is not a finite number in {len(bad)} rows of metrics.jsonl, first at step {bad[0]:,}.")
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
        value = number(held_out["eval_loss"], 3) + (f" ± {number(error, 2)}" if _finite(error) else "")
        yield "Held-out loss", value, (f"N = {count:,.0f}, " if _finite(count) else "") + f"step {held_out['step']:,}"
    if training:
        yield "Training loss", number(training["loss"], 3), f"step {training['step']:,}"
    if speed:
        batch_size = contents.setting("training.batch_size")
        yield "Speed", f"{number(speed['images_per_second'], 3)} images/s", f"batches of {batch_size}" if batch_size else ""
    settings: dict[str, Any] = {key.replace(".", "_"): _shown(value) for key, value in leaves(contents.config)}
    described = string.Template("$data_image_size × $data_image_size × $data_num_channels")
    yield "Data", settings.get("data_dataset", ""), _filled(described, settings)
    described = string.Template("$model_model_channels × $model_channel_mult channels")
    yield "Parameters", _num_parameters(contents.config), _filled(described, settings)
    described = string.Template("up to $model_blur_sigma_max pixels, σ $model_sigma")
    yield "Blur levels", settings.get("model_K", ""), _filled(described, settings)
    yield "Seed", settings.get("seed", ""), ""
    if contents.written:
        day, clock, zone = _time(contents.written).split()
        yield "Last row written", f"{clock} {zone}", day


def _filled(template: string.Template, settings: dict[str, Any]) -> str:
    return template.substitute(settings) if set(template.get_identifiers()) <= settings.keys() else ""


def _num_parameters(config: dict[str, Any]) -> str:
    """Weights of the network, or "" for a configuration of another version."""
    from scripts.plan import num_parameters  # imports PyTorch, which mistyped flags need not wait for

    parsed = ConfigDict(config)
    try:
        validate(parsed)
    except UserError:
        return ""
    return f"{num_parameters(parsed) / 1e6:.3g}M"


def _samples(contents: RunDirectory) -> str:
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
        f'<div class="card scrubber"><div class="strip" tabindex="0">{"".join(figures)}</div></div>',
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
    return f'<figure class="{kind}"><img src="{source}" alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>'


def _process(contents: RunDirectory, directory: Path, step: int) -> str:
    kind, source = clip(directory)
    caption = f"The reverse process at step {step:,}: from blur to images"
    if kind == "video":
        # Without `autoplay`: the script starts it for those who have not asked for less motion.
        shown = f'<video src="{source}" controls muted loop playsinline aria-label="{caption}"></video>'
    elif kind == "image":
        still = picture(directory / "final.png")
        shown = (
            f'<picture><source media="(prefers-reduced-motion: reduce)" srcset="{still}"><img src="{source}" alt="{caption}"></picture>'
        )
    else:
        existing = [directory / name for name in ("process.mp4", "process.gif") if (directory / name).is_file()]
        if not existing:
            return ""
        link = quote(str(existing[0].relative_to(contents.path)))
        return f'<div class="card"><p>The clip of the process is too large for this page: <a href="{link}">{link}</a></p></div>'
    return f'<figure class="card">{shown}<figcaption>{caption}</figcaption></figure>'


def _curves(contents: RunDirectory) -> str:
    rows = contents.rows
    marks = sorted({row["step"] for row in rows if "event" in row and row["step"] > 0})[-MOST_MARKS:]
    bands = list(dict.fromkeys(key for row in rows for key in row if key.startswith("loss_levels_")))
    by_level = [
        Series(band.removeprefix("loss_levels_").replace("_to_", "–"), _points(rows, band), 1 + i % 5)
        for i, band in enumerate(bands)
    ]
    unit = "squared error per image"
    return (
        '<div class="charts">\n'
        + line_chart(
            "Loss",
            f"{unit}; band of held out: 1 standard error",
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
        if isinstance(value, int | float) and _finite(value):
            band = error if isinstance(error, int | float) and _finite(error) else 0.0
            points.append(Point(row["step"], value, value - band, value + band))
    return points


SETTINGS_OF_SCORES: tuple[tuple[str, Callable[[Row], object]], ...] = (
    ("Step", lambda row: row.get("checkpoint_step")),
    ("δ", lambda row: row.get("delta")),
    ("Seed", lambda row: row.get("seed")),
    ("Against", lambda row: row.get("reference", row.get("dataset_split"))),
    ("Features", lambda row: row.get("features_extractor")),
)


def _scores(contents: RunDirectory) -> str:
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


def _more_samples(contents: RunDirectory) -> str:
    """What sample.py drew, the newest first."""
    found = [
        path
        for name in ("final.png", "interpolation.png")
        for path in contents.path.glob(f"additional_samples/*/*/{name}")
        if path.is_file()
    ]
    found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    figures = [
        _picture(path, " · ".join(path.parts[-3:-1]).replace("_", " "), "card")
        for path in found[:MOST_SETS]
    ]
    return f'<div class="pictures drawn">{"".join(figures)}</div>' if any(figures) else ""


def _events(contents: RunDirectory) -> str:
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
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of events"><table><thead><tr><th scope="col">Step</th>'
        f'<th scope="col">Event</th><th scope="col">Details</th></tr></thead><tbody>{"".join(lines)}</tbody></table></div></details>'
    )


def _configuration(contents: RunDirectory) -> str:
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


if __name__ == "__main__":
    # Not above: training, which has a flag of this name, imports this file.
    flags.DEFINE_string("workdir", None, "Run directory; the flag's name may be left out.")
    run(main, positional="workdir")
