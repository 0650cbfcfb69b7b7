"""Folders of reference images: what is written of them, and what is said of how they are read."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.errors import UserError
from scripts.evaluation.references import folder_images, readable_features, save_statistics
from tests.evaluation.test_scores import Recorder


def test_statistics_of_one_readable_image_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name stays free."""
    monkeypatch.setattr("scripts.evaluation.references.statistics_folder", lambda: tmp_path / "stats")
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "1.png")
    (folder / "2.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"--dataset_path=.*: 1 images can be read, where statistics need at least 2"):
        save_statistics("mine", folder, Recorder(), "clean", 4)
    assert not list((tmp_path / "stats").iterdir())


def test_reading_as_clean_fid_does_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
