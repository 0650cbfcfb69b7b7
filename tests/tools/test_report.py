"""The page about a run: complete in itself, safe against what files say, and there whatever part of a run is."""

import base64
import io
import json
import math
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.config import ROOT, to_json
from scripts.errors import UserError
from scripts.evaluation.results import RESULTS, Result, append_result
from scripts.io import read_json_lines
from scripts.tools.charts import Axis, Point, number, thinned
from scripts.tools.embedding import CLIP_BYTES, PICTURE_BYTES, picture
from scripts.tools.report import write_report
from scripts.tools.report_sections import evenly
from scripts.training import loop as training
from scripts.training.loop import train
from tests.conftest import tiny_config
from tests.test_cli import error_line

HOSTILE = """<script>alert("1")</script>' onload='x"""


class Page(HTMLParser):
    """Tags with their attributes, and the text, of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.size = path.stat().st_size
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(workdir: Path) -> Page:
    return Page(write_report(workdir))


def save_samples(directory: Path, size: int = 16) -> None:
    """Noise, which no coding makes small."""
    directory.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    for name in ("init.png", "final.png", "process.gif"):
        Image.fromarray(pixels).save(directory / name)


def write_rows(workdir: Path, *rows: object) -> None:
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A run directory that holds only a configuration."""
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.json").write_text(to_json(tiny_config(data__path=HOSTILE)))
    return path


def test_training_writes_a_page_that_needs_nothing_else(tiny_array: Path, tmp_path: Path) -> None:
    """Every source is a data URI that decodes to an image or a video; no style sheet, no script from elsewhere."""
    config = tiny_config(data__dataset="npy", data__path=str(tiny_array), training__sampling_freq=3, training__eval_freq=3)
    assert train(config, tmp_path) == 0
    page = Page(tmp_path / "index.html")
    sources = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "srcset")]
    assert len(sources) == 4, "start, process, two sampling times"
    for source in sources:
        kind, _, coded = source.partition(";base64,")
        data = base64.b64decode(coded, validate=True)
        if kind == "data:video/mp4":
            assert data[4:8] == b"ftyp"
        else:
            with Image.open(io.BytesIO(data)) as image:
                image.load()
    assert [link["href"] for link in page.all("link")] == ["data:,"]
    assert all("src" not in attributes for attributes in page.all("script"))
    assert not page.all("a")
    assert "default-src 'none'" in (tmp_path / "index.html").read_text()
    for shown in ("Step 6", "finished", "Held-out loss", "N = 4", "Samples at step 3", "Gradient norm", "channel_mult"):
        assert shown in page.text, shown
    assert not list(tmp_path.glob(".index*"))


def test_a_page_that_cannot_be_written_does_not_stop_training(
    tiny_array: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line says so; tests turn such warnings into errors unless they ask for them."""

    def fail(workdir: Path) -> Path:
        raise OSError("No space left on device")

    monkeypatch.setattr(training, "write_report", fail)
    with pytest.warns(UserWarning, match=r"no index.html at step 6: OSError: No space left"):
        assert train(tiny_config(data__dataset="npy", data__path=str(tiny_array)), tmp_path) == 0


def test_names_and_values_cannot_become_markup(workdir: Path) -> None:
    """From the configuration, events, scores, folders and the run's own name."""
    write_rows(
        workdir,
        {"step": 1, "loss": 1.0, f"loss_levels_{HOSTILE}": 1.0},
        {"step": 2, "event": HOSTILE, HOSTILE: HOSTILE},
        {"step": 2, "loss": HOSTILE, "eval_loss": [1]},
    )
    results = workdir / RESULTS
    results.parent.mkdir()
    results.write_text(json.dumps(dict.fromkeys(("score", "value", "unit", "delta", "reference", "finished"), HOSTILE)) + "\n")
    save_samples(workdir / "additional_samples" / "checkpoint_0" / "<b>bold<b>")
    renamed = workdir.rename(workdir.with_name("<i>run"))
    page = page_of(renamed)
    assert len(page.all("script")) == 1
    assert not page.all("b><i")
    assert not page.all("i")
    assert not [a for _, a in page.tags if "onload" in a]
    assert page.text.count(HOSTILE) >= 5
    assert "<i>run" in page.text
    assert any("<b>bold<b>" in image["alt"] for image in page.all("img"))


def test_the_page_stays_small(workdir: Path) -> None:
    """A long run with large pictures: at most 5 MB, the newest and the oldest samples among those shown."""
    write_rows(
        workdir, *({"step": i, "loss": 1 / i, "lr": 1e-4, "grad_norm": i, "images_per_second": 9} for i in range(1, 20001))
    )
    save_samples(workdir / "samples" / "iter_1", size=600)
    for i in range(2, 40):
        (workdir / "samples" / f"iter_{i}").symlink_to(workdir / "samples" / "iter_1")
    for i in range(9):
        (workdir / "additional_samples" / "checkpoint_0").mkdir(parents=True, exist_ok=True)
        (workdir / "additional_samples" / "checkpoint_0" / f"delta_{i}").symlink_to(workdir / "samples" / "iter_1")
    (workdir / "samples" / "iter_1" / "process.gif").write_bytes(bytes(CLIP_BYTES + 1))
    page = page_of(workdir)
    assert page.size < 4_000_000
    assert len(page.all("img")) == 1 + 12 + 6
    assert "Samples at step 39" in page.text
    assert "Samples at step 1" in page.text
    assert page.all("a") == [{"href": "samples/iter_39/process.gif"}], "a clip that is too large is linked"
    assert max(len(line["points"]) for line in page.all("polyline")) < 5000


def test_pictures_are_coded_again_only_if_too_large(tmp_path: Path) -> None:
    """A small grey one keeps its very pixels; a large one becomes a JPEG within the limit."""
    save_samples(tmp_path / "large", size=900)
    source = picture(tmp_path / "large" / "final.png")
    assert source.startswith("data:image/jpeg;base64,")
    assert len(base64.b64decode(source.partition(",")[2])) <= PICTURE_BYTES
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(np.repeat(grey[..., None], 3, axis=2)).save(tmp_path / "small.png")
    coded = base64.b64decode(picture(tmp_path / "small.png").partition(",")[2])
    with Image.open(io.BytesIO(coded)) as image:
        np.testing.assert_array_equal(np.asarray(image), grey)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"step": 1, "loss": 0.5}],
        [{"step": 0, "event": "started"}],
        [{"step": 5, "eval_loss": 0.5, "eval_num_images": 1}],
        [{"step": 1, "loss": math.nan, "lr": math.inf}, {"step": 2, "loss": 0.0}, {"step": 3, "loss": -1.0}],
        [[1, 2], "text", None, {"loss": 1.0}, {"step": "x", "loss": 1.0}, {"step": 4, "loss": 1, "lr": "high"}],
    ],
)
def test_a_page_from_whatever_is_there(rows: list[object], workdir: Path) -> None:
    """No rows yet, a single one, values that are no numbers, rows that are no rows: the rest is shown."""
    write_rows(workdir, *rows)
    page = page_of(workdir)
    assert "Configuration" in page.text
    assert "nan" not in str(page.all("polyline")).lower()
    assert ("Curves" in page.text) == any(isinstance(row, dict) and "step" in row and row["step"] != 0 for row in rows)
    if "NaN" in (workdir / "metrics.jsonl").read_text():
        assert "not a finite number in 1 of 3 rows, first at step 1" in page.text
    if {"step": 0, "event": "started"} in rows:
        assert "1 events, the last: started" in page.text


def test_without_a_configuration_and_with_a_damaged_picture(workdir: Path) -> None:
    (workdir / "config.json").unlink()
    write_rows(workdir, {"step": 7, "loss": 0.5})
    save_samples(workdir / "samples" / "iter_7")
    (workdir / "samples" / "iter_7" / "init.png").write_bytes(b"half a pic")
    page = page_of(workdir)
    assert "Step 7" in page.text
    assert len(page.all("img")) == 2, "process and result"


def test_what_differs_from_the_defaults_is_marked(workdir: Path) -> None:
    page = page_of(workdir)
    assert "default 128" in page.text, "batch_size"
    assert len([row for row in page.all("tr") if row.get("class") == "changed"]) == page.text.count("default ")


def test_scores_of_a_run_are_kept_in_its_directory(workdir: Path, tmp_path: Path) -> None:
    """evaluate.py's log belongs to an experiment; the copy in the run directory is what the page shows."""
    result = Result("FID", 21.25, 0.5, 1000, {"delta": 0.0125, "checkpoint_step": 50, "reference": "mnist5k train"})
    append_result(tmp_path / "logs", result, param_name="delta", seconds=1, workdir=workdir)
    assert read_json_lines(workdir / RESULTS) == read_json_lines(tmp_path / "logs" / "FID_log.jsonl")
    page = page_of(workdir)
    for shown in ("21.25 ± 0.5", "1,000", "mnist5k train"):
        assert shown in page.text


def test_the_command(workdir: Path, tmp_path: Path) -> None:
    """The directory with and without the flag's name; one line for what is none."""

    def report(*args: object) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "scripts.tools.report", *map(str, args)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False, env=environment)

    result = report(workdir)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"report in {workdir / 'index.html'}\n"
    assert "no run directory" in error_line(report(f"--workdir={tmp_path}"))
    assert "'more' is not a flag" in error_line(report(workdir, "more"))
    assert list(tmp_path.iterdir()) == [workdir], "nothing else is written"


def test_a_broken_configuration_is_named(workdir: Path) -> None:
    (workdir / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json: this is not JSON"):
        write_report(workdir)


def test_thinning_keeps_extremes_and_means() -> None:
    points = [Point(x, y, y, y) for x, y in enumerate([1.0] * 500 + [9.0] + [1.0] * 499)]
    kept = thinned(points, most=100)
    assert len(kept) == 100
    assert max(point.high for point in kept) == 9
    assert sum(point.y for point in kept) / 100 == pytest.approx(1.008, abs=1e-3)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("ends", [(1e-6, 1e3), (0.9, 1.0), (0.059, 0.16), (5.0, 5.0), (1.0, 1_300_001.0)])
def test_axes_have_a_few_round_ticks_inside(ends: tuple[float, float], log: bool) -> None:
    axis = Axis.around(ends, log)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 9
    for tick in ticks:
        assert 0 <= axis.place(tick) <= 1000
        assert float(f"{tick:.2g}") == pytest.approx(tick)
    assert axis.place(ends[0]) < axis.place(ends[1]) or ends[0] == ends[1]


def test_sampling_times_are_evenly_spread() -> None:
    assert evenly(range(1, 100), 3) == [1, 50, 99]
    assert evenly([1, 2], 3) == [1, 2]


def test_numbers_for_people() -> None:
    values = {0.0: "0", 0.00050019: "0.0005", 4.89e-5: "0.0000489", 3e-6: "3e-6", 12345.6: "12,346", -0.2: "-0.2", 1e6: "1e6"}
    assert {value: number(value, 3) for value in values} == values
