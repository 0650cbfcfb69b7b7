"""Folders of reference images: what is written of them, and what is said of how they are read."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.evaluation.references import folder_images, readable_features, save_statistics
from tests.conftest import bad_input
from tests.evaluation.evaluations import Recorder
from tests.images import save_images


def test_statistics_of_one_readable_image_are_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name stays free."""
    monkeypatch.setattr(
        "scripts.evaluation.references.statistics_folder", lambda: tmp_path / "stats"
    )
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "1.png")
    (folder / "2.png").write_bytes(b"no image")
    with bad_input(
        r"--dataset_path=.*: 1 images can be read, where statistics need at least 2",
    ):
        save_statistics("mine", folder, Recorder(), "clean", 4)
    assert not list((tmp_path / "stats").iterdir())


def test_what_cannot_be_read_is_said_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """How many, which and why, in one line, again where features are in the cache."""
    save_images(tmp_path / "images", [f"{i}.png" for i in range(4)])
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "images" / "0a.tif")
    for i in range(6):
        (tmp_path / "images" / f"{i}b.png").write_bytes(b"no image")
    (tmp_path / "images" / "0b.png").write_bytes((tmp_path / "images" / "0.png").read_bytes()[:45])
    for _ in range(2):
        rows = readable_features(
            tmp_path / "cache", folder_images(tmp_path / "images"), Recorder(), 2, "images"
        )
        assert len(rows) == 5, "clean-fid clips floating point"
        lines = capsys.readouterr().err.splitlines()
        (line,) = [line for line in lines if "cannot be read" in line]
        assert line.startswith("warning: 6 of 11 images cannot be read: ")
        assert line.endswith("; and 1 more")
        assert re.search(r"0b\.png: .*trunc", line)
        assert "1b.png: no image, or damaged" in line


def test_reading_as_clean_fid_does_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, with counts."""
    folder, exif = tmp_path / "images", Image.Exif()
    folder.mkdir()
    exif[0x0112] = 6
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(folder / "1.png")
    Image.new("RGBA", (8, 8)).save(folder / "2.png")
    Image.new("RGB", (8, 8)).save(folder / "3.jpg", exif=exif)
    Image.new("RGB", (8, 8)).save(folder / "4.png")
    readable_features(tmp_path / "cache", folder_images(folder), Recorder(), 2, "reference images")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    for text in ("1 with 16-bit grey", "1 with transparency", "1 with rotation in EXIF"):
        assert text in lines[0]
