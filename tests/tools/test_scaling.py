"""Scaling measurements: every kind of work runs, warm-up does not count, and only what is between the marks is rewritten."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ml_collections import ConfigDict
from PIL import Image

from scripts.errors import UserError
from scripts.timing import processor_name
from scripts.tools import scaling
from scripts.tools.scaling import BEGIN, END, Curve, Page, Point, measure, report, table_lines

CPU = torch.device("cpu")


def test_all_measurements_and_their_files(
    make_config: Callable[..., ConfigDict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, values in {
        "BATCH_SIZES": (2, 4), "IMAGE_SIZES": (8, 16), "LEVELS": (1, 2), "SAMPLES": (2, 3), "BOUND_IMAGES": (3, 5),
        "PRIOR_IMAGES": (7, 9, 5000),
    }.items():  # fmt: skip
        monkeypatch.setattr(scaling, name, values)
    (tmp_path / "performance.md").write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    tables = report(make_config(), CPU, 2, tmp_path)
    assert (tmp_path / "performance.md").read_text() == f"before\n{BEGIN}\n{tables}\n{END}\nafter\n"
    found = json.loads((tmp_path / "performance.json").read_text())
    assert {"device", "processor", "torch", "precision", "command"} <= found["header"].keys()
    assert [[row["x"] for row in curve["rows"]] for curve in found["curves"]] == [
        [2, 4], [8, 16], [1, 2], [2, 3], [3, 5], [7, 9],
    ], "there are only 4500 images"  # fmt: skip
    assert all(len(row["seconds"]) == 2 for curve in found["curves"] for row in curve["rows"])
    with Image.open(tmp_path / "performance.png") as picture:
        assert picture.width > 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["performance.json", "performance.md", "performance.png"]


def test_points_take_turns_and_the_first_round_does_not_count() -> None:
    order: list[int] = []

    def point(x: int) -> Point:
        return Point(x, lambda: order.append(x), work=1.0, amount=1.0)

    curves = [Curve("a", "x", "x", 1, [point(1), point(2)]), Curve("b", "x", "x", 1, [point(3)])]
    found = measure(curves, 2, CPU)
    assert order == [1, 2, 3] * 3
    assert [[len(row["seconds"]) for row in curve["rows"]] for curve in found] == [[2, 2], [2]]


def test_tables() -> None:
    rows = [{"x": 8, "amount": 8.0, "seconds": [0.1, 0.4, 0.2]}]
    lines = list(table_lines({"torch": "2.8"}, [{"title": "Step", "x_label": "batch size", "per": "image", "rows": rows}]))
    assert lines[:3] == ["```", "torch       2.8", "```"]
    assert lines[-3:] == [
        "| batch size | median | fastest to slowest of 3 | per image |",
        "|---:|---:|---:|---:|",
        "| 8 | 200 ms | 100 ms to 400 ms | 25 ms |",
    ]


def test_a_page_without_marks_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "performance.md"
    path.write_text("written by hand\n")
    with pytest.raises(UserError, match="which it lacks"):
        Page(path)
    assert path.read_text() == "written by hand\n"


def test_processor_has_a_name() -> None:
    assert processor_name()
    assert "\n" not in processor_name()
