"""The gallery's pictures show what their captions say."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.errors import UserError
from scripts.sampling.output import GAP
from scripts.tools.gallery import COLUMNS, ROWS, draw
from scripts.training.loop import train
from tests.conftest import tiny_config


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All pictures of a tiny run."""
    place = tmp_path_factory.mktemp("gallery")
    config = tiny_config(model__K=4)
    assert train(config, place / "run") == 0
    draw(config, place / "run", place / "out", delta=None, bound=True)
    return place / "out"


def tiles(path: Path) -> np.ndarray:
    """The images of a grid: (rows, columns, H, W, 3)."""
    sheet = np.asarray(Image.open(path).convert("RGB"))
    size = (sheet.shape[1] - GAP) // COLUMNS
    rows = sheet.shape[0] // size
    places = [(row * size + GAP, column * size + GAP) for row in range(rows) for column in range(COLUMNS)]
    parts = [sheet[top : top + size - GAP, left : left + size - GAP] for top, left in places]
    return np.stack(parts).reshape(rows, COLUMNS, size - GAP, size - GAP, 3)


def test_all_are_there_and_small(gallery: Path) -> None:
    names = {"bound_by_level", "forward", "interpolation", "process", "same_init", "samples", "share_noise"}
    assert {path.name for path in gallery.iterdir()} == {f"{name}.png" for name in names} | {"process.gif"}
    assert sum(path.stat().st_size for path in gallery.iterdir()) < 3_000_000


def test_same_init(gallery: Path) -> None:
    initial, results = tiles(gallery / "same_init.png")
    assert (initial == initial[0]).all()
    assert len({image.tobytes() for image in results}) == COLUMNS


def test_share_noise(gallery: Path) -> None:
    initial, results = tiles(gallery / "share_noise.png")
    assert len({image.tobytes() for image in initial}) > COLUMNS // 2
    assert len({image.tobytes() for image in results}) > COLUMNS // 2


def test_strips_end_with_the_samples(gallery: Path) -> None:
    strips, samples = tiles(gallery / "process.png"), tiles(gallery / "samples.png")
    assert strips.shape[0] == samples.shape[0] == ROWS
    assert (strips[:, -1] == samples[:, 0]).all()


def test_blur_grows_from_left_to_right(gallery: Path) -> None:
    contrast = tiles(gallery / "forward.png").astype(float).std(axis=(2, 3, 4))
    assert (contrast[:, 0] > contrast[:, -1]).all()
    assert (np.diff(contrast, axis=1) <= 0.5).all(), "but for rounding"


def test_ends_of_an_interpolation_are_samples(gallery: Path) -> None:
    path, samples = tiles(gallery / "interpolation.png")[1], tiles(gallery / "samples.png")[0]
    for one, other in ((path[0], samples[0]), (path[-1], samples[1])):
        assert np.abs(one.astype(int) - other).max() <= 1


def test_a_bound_that_is_infinite_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    config = tiny_config()
    assert train(config, tmp_path / "run") == 0
    with pytest.raises(UserError, match=r"--delta=0: the bound is infinite .* --nobound"):
        draw(config, tmp_path / "run", tmp_path / "out", delta=0.0, bound=True)
    assert not (tmp_path / "out").exists()
    draw(config, tmp_path / "run", tmp_path / "out", delta=0.0, bound=False)
    assert len(list((tmp_path / "out").iterdir())) == 7
