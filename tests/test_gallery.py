"""The gallery's pictures show what their captions say."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.config.paths import ROOT
from scripts.sampling.output import GAP
from tests.evaluation.made_run import make_run
from tests.tiny import tiny_config

SCRIPT = runpy.run_path(str(ROOT / "docs/gallery/draw.py"))
COLUMNS = SCRIPT["COLUMNS"]
ROWS = SCRIPT["ROWS"]


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All pictures of a tiny run."""
    place = tmp_path_factory.mktemp("gallery")
    config = tiny_config(model__K=4)
    make_run(config, place / "run")
    SCRIPT["draw"](place / "run", place / "out")
    return place / "out"


def tiles(path: Path) -> np.ndarray:
    """The images of a grid: (rows, columns, H, W, 3)."""
    sheet = np.asarray(Image.open(path).convert("RGB"))
    size = (sheet.shape[1] - GAP) // COLUMNS
    rows = sheet.shape[0] // size
    places = [
        (row * size + GAP, column * size + GAP) for row in range(rows) for column in range(COLUMNS)
    ]
    parts = [sheet[top : top + size - GAP, left : left + size - GAP] for top, left in places]
    return np.stack(parts).reshape(rows, COLUMNS, size - GAP, size - GAP, 3)


def test_process_ends_with_the_samples(gallery: Path) -> None:
    process, samples = tiles(gallery / "process.png"), tiles(gallery / "samples.png")
    assert process.shape[0] == samples.shape[0] == ROWS
    assert (process[:, -1] == samples[:, 0]).all()
    with Image.open(gallery / "process.gif") as clip:
        assert getattr(clip, "n_frames", 1) == 5


def test_initial_states_are_above_their_samples(gallery: Path) -> None:
    """One for all in same_init, different ones in share_noise; interpolations end in samples."""
    for name, num_initial_states in (("same_init", 1), ("share_noise", COLUMNS)):
        initial, results = tiles(gallery / f"{name}.png")
        assert len({image.tobytes() for image in initial}) == num_initial_states
        assert len({image.tobytes() for image in results}) > COLUMNS // 2
    path, samples = tiles(gallery / "interpolation.png")[1], tiles(gallery / "samples.png")[0]
    for one, other in ((path[0], samples[0]), (path[-1], samples[1])):
        assert np.abs(one.astype(int) - other).max() <= 1


def test_blur_grows_from_left_to_right(gallery: Path) -> None:
    contrast = tiles(gallery / "forward.png").astype(float).std(axis=(2, 3, 4))
    assert (contrast[:, 0] > contrast[:, -1]).all()
    assert (np.diff(contrast, axis=1) <= 0.5).all(), "but for rounding"
