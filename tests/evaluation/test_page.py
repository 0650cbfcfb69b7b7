"""The page about a run: complete in itself, safe against what files say, from whatever part of a
run is there.
"""

import base64
import html
import io
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.config.load import to_json
from scripts.evaluation.page import MAX_PIXELS, MAX_SAMPLING_TIMES, write_page
from scripts.evaluation.results import RESULTS
from tests.conftest import bad_input, command, error_line
from tests.tiny import tiny_config

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
HOSTILE = """<script>alert("1")</script>' onload='x"""


class Page(HTMLParser):
    """Tags with their attributes, and the text, of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def save_picture(path: Path, size: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size, size, 3), 99, np.uint8)).save(path)


def write_rows(path: Path, *rows: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A run directory that holds only a configuration."""
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.json").write_text(to_json(tiny_config(data__path=HOSTILE)))
    return path


def test_the_page_shows_the_run_and_needs_nothing_else(workdir: Path) -> None:
    """Samples, curves, scores and what differs from the defaults; every source is a PNG inside the
    page.
    """
    rows = [
        {"step": i, "loss": 1 / i, "lr": 1e-3, "loss_levels_1_to_3": 1 / i} for i in range(1, 1001)
    ]
    write_rows(
        workdir / "metrics.jsonl",
        *rows,
        {"step": 1000, "eval_loss": 0.5, "eval_loss_standard_error": 0.1},
    )
    for step in range(10, 400, 10):
        save_picture(workdir / "samples" / f"iter_{step}" / "final.png")
    save_picture(workdir / "samples" / "iter_390" / "init.png")
    save_picture(
        workdir / "additional_samples" / "checkpoint_0" / "delta_0.01" / "final.png",
        size=2 * MAX_PIXELS,
    )
    score = {
        "score": "FID",
        "value": 21.250001,
        "standard_error": 0.5,
        "num_images": 1234,
        "delta": 0.0125,
        "guidance": 2.0,
        "guidance_interval": [2, 3],
        "sampler": "heun",
        "model": {"K": 9},
    }
    other = score | {"guidance": 1.0, "guidance_interval": [1, 9], "sampler": None}
    other |= {"init": "held_out", "from_level": 4, "per_init": 5}
    write_rows(workdir / RESULTS, score, other, other | {"from_level": 9, "per_init": 1})
    page = Page(write_page(workdir))
    sizes = []
    for image in page.all("img"):
        kind, _, coded = image["src"].partition(";base64,")
        assert kind == "data:image/png"
        with Image.open(io.BytesIO(base64.b64decode(coded))) as picture:
            sizes.append(picture.size[0])
    assert sizes == [16] * (1 + MAX_SAMPLING_TIMES) + [MAX_PIXELS]
    assert {link["href"] for link in page.all("a")} >= {
        "samples/iter_390/final.png",
        "additional_samples/checkpoint_0/delta_0.01/final.png",
        "metrics.jsonl",
    }
    assert len(page.all("svg")) == 1
    assert not page.all("script")
    assert [link["href"] for link in page.all("link")] == ["data:,"]
    for shown in (
        "Step 1000",
        "step 390",
        "step 10",
        "held out",
        "1 to 3",
        "21.25 ± 0.5",
        "0.0125, heun, guidance 2, at levels 2 to 3settings",
        "0.0125, init held_out, from level 4, 5 of eachsettings",
        "0.0125, init held_outsettings",
        "1234",
        "delta_0.01",
    ):
        assert shown in page.text, shown
    assert len([row for row in page.all("tr") if row.get("class") == "changed"]) > 10
    assert "<td>training.batch_size<td>4<td>128" in (workdir / "index.html").read_text()
    assert (workdir / "index.html").stat().st_size < 300_000


def test_names_and_values_cannot_become_markup(workdir: Path) -> None:
    """From the configuration, metrics, events, scores, folders and the run's own name."""
    write_rows(
        workdir / "metrics.jsonl",
        {"step": 1, "loss": 1.0, f"loss_levels_{HOSTILE}": 1.0},
        {"step": 2, "event": HOSTILE, "time": HOSTILE},
        {"step": 2, "loss": HOSTILE, "eval_loss": [1]},
    )
    write_rows(workdir / RESULTS, dict.fromkeys(("score", "value", "num_images", HOSTILE), HOSTILE))
    save_picture(workdir / "additional_samples" / "checkpoint_0" / "<b>bold" / "final.png")
    page = Page(write_page(workdir.rename(workdir.with_name("<i>run"))))
    assert not page.all("script") + page.all("b><i") + page.all("i")
    assert not [attributes for _, attributes in page.tags if "onload" in attributes]
    assert page.text.count(HOSTILE) >= 5
    assert any("<b>bold" in image["alt"] for image in page.all("img"))


@pytest.mark.parametrize(
    ("rows", "curves", "nonfinite"),
    [
        ([], 0, False),
        ([{"step": 0, "event": "started"}, {"step": 1, "loss": 0.5}], 1, False),
        ([{"step": 1, "loss": math.nan, "lr": math.inf}, {"step": 2, "loss": 0.0}], 1, True),
        ([[1, 2], "text", {"loss": 1.0}, {"step": 4, "loss": 1, "lr": "high"}], 1, False),
    ],
)
def test_a_page_from_whatever_is_there(
    rows: list[object], curves: int, nonfinite: bool, workdir: Path
) -> None:
    """No rows yet, values that are no numbers, rows without a step, a damaged picture: the rest is
    shown.
    """
    write_rows(workdir / "metrics.jsonl", *rows)
    save_picture(workdir / "samples" / "iter_7" / "final.png")
    (workdir / "samples" / "iter_7" / "init.png").write_bytes(b"half a pic")
    page = Page(write_page(workdir))
    assert "Step 7" in page.text
    assert (len(page.all("svg")), len(page.all("img"))) == (curves, 1)
    assert ("not finite in 1 rows, first at step 1" in page.text) == nonfinite


def measured_in_chromium(page: Path, width: int) -> dict[str, int]:
    """Open a page in a frame so many pixels wide: its size, how many pictures there are, and how
    many do not load.
    """
    frame = f"""<iframe src="{page.as_uri()}" style="width: {width}px; height: 900px; border: 0">
        </iframe><script>addEventListener("load", () => {{
        const page = document.querySelector("iframe").contentDocument;
        const broken = [...page.images].filter(image => !image.naturalWidth).length;
        document.title = JSON.stringify({{broken, images: page.images.length,
            width: page.documentElement.scrollWidth, height: page.documentElement.scrollHeight}});
    }})</script>"""
    outer = page.with_name("frame.html")
    outer.write_text(frame)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    options += ["--allow-file-access-from-files", "--enable-logging=stderr", "--dump-dom"]
    command = [str(CHROMIUM), *options, outer.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert [line for line in result.stderr.splitlines() if "CONSOLE" in line] == []
    title = re.search("<title>(.*?)</title>", result.stdout)
    assert title is not None
    return json.loads(html.unescape(title[1]))


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, to open the page")
def test_in_a_browser(workdir: Path) -> None:
    """All pictures load; three screens are enough, also with sixteen scores; nothing is cut off
    on a telephone.
    """
    rows = [{"step": i, "loss": 1 / i, "images_per_second": 90.0} for i in range(1, 100)]
    write_rows(workdir / "metrics.jsonl", *rows)
    for step in range(10, 100, 10):
        save_picture(workdir / "samples" / f"iter_{step}" / "final.png", size=300)
    save_picture(workdir / "samples/iter_90/process.gif", size=300)
    save_picture(workdir / "data.png", size=600)
    for i in range(6):
        save_picture(workdir / f"additional_samples/checkpoint_0/{i}/final.png", size=900)
    score = {"score": "FID", "value": 21.25, "num_images": 500, "chain": [3, 2, 0]}
    write_rows(workdir / RESULTS, *[score | {f"setting_{i}": i for i in range(40)}] * 16)
    page = write_page(workdir)
    wide, narrow = measured_in_chromium(page, 1400), measured_in_chromium(page, 400)
    assert wide["broken"] == narrow["broken"] == 0
    assert wide["images"] == 1 + 1 + 1 + 7 + 6
    assert wide["height"] <= 3 * 900
    assert narrow["width"] <= 400


def test_the_page_of_a_run_that_cannot_be_written_to(workdir: Path, tmp_path: Path) -> None:
    """Elsewhere; its links lead to the run's files."""
    save_picture(workdir / "samples" / "iter_9" / "final.png")
    elsewhere = tmp_path / "pages" / "page.html"
    elsewhere.parent.mkdir()
    before = sorted(workdir.rglob("*"))
    page = Page(write_page(workdir, elsewhere))
    assert sorted(workdir.rglob("*")) == before
    links = [link["href"] for link in page.all("a")]
    assert all((elsewhere.parent / link).exists() for link in links)


def test_the_command(workdir: Path, tmp_path: Path) -> None:
    """The directory without and with the flag's name; one line for what is none."""
    result = command("-m", "scripts.tools.report", workdir)
    assert result.stdout == f"report in {workdir / 'index.html'}\n", result.stderr
    metrics = workdir / "metrics.jsonl"
    metrics.write_text("")
    for out in (metrics, workdir / "config.json"):
        with bad_input(r"must end in \.html, and be new or a page"):
            write_page(workdir, out)
    assert metrics.read_text() == ""
    refused = command("-m", "scripts.tools.report", f"--workdir={tmp_path}")
    assert error_line(refused) == f"error: {tmp_path}: not a run directory, it has no config.json"
