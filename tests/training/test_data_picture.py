"""data.png: what training shows of its data when it begins."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from scripts.config.resolve import resolve
from scripts.data.images import ArrayImages
from scripts.sampling.output import _fitting, sheet
from scripts.training.data_picture import COLUMNS, DataPicture
from scripts.training.loop import train
from tests.images import WithDamage
from tests.tiny import tiny_config


def data_picture(images: np.ndarray, **changes: object) -> DataPicture:
    """Of an array, 8 x 8 pixels unless `changes` say otherwise."""
    return DataPicture(resolve(tiny_config(**changes)), ArrayImages(images))


def test_training_writes_it_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In TensorBoard, too; a run that goes on leaves it."""
    config = tiny_config(training__n_iters=1)
    assert train(config, tmp_path) == 0
    printed = capsys.readouterr().out
    assert f"what the network will see: {tmp_path / 'data.png'}" in printed
    assert "images       64 of 5000 images looked at: uint8 28 x 28 pixels" in printed
    with Image.open(tmp_path / "data.png") as picture:
        assert min(picture.size) > 400
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"data" in events.read_bytes()
    (tmp_path / "data.png").write_bytes(b"")
    config.training.n_iters = 2
    assert train(config, tmp_path) == 0
    assert (tmp_path / "data.png").read_bytes() == b""


def test_images_that_differ_by_less_than_the_noise() -> None:
    """A folder of scans that were read as nearly black has a wonderful loss."""
    images = np.random.default_rng(0).integers(2, size=(40, 8, 8), dtype=np.uint8)
    line = data_picture(images).warning()
    assert "differ by 0.002 a pixel" in line
    assert "less than config.model.sigma = 0.01" in line
    assert data_picture(images * 10).warning() == ""
    assert data_picture(images, model__process="gaussian_diffusion").warning() == ""


def test_sharp_images_and_their_states() -> None:
    """Image i is of brightness i, which no blur changes; noise is that of the level."""
    images = np.arange(0, 240, 10, dtype=np.uint8).repeat(64).reshape(24, 8, 8)
    picture = data_picture(images, model__K=4)
    rows = []
    drawn = np.asarray(picture.draw().convert("L"))
    side = 96
    for top in (4, 4 + 130, 4 + 260, 4 + 360, 4 + 460, 4 + 560):
        tiles = [drawn[top : top + side, 90 + 100 * i : 186 + 100 * i] for i in range(COLUMNS)]
        rows.append([tile.mean() for tile in tiles])
    np.testing.assert_allclose(rows[0] + rows[1], np.linspace(0, 230, 16) // 10 * 10, atol=1)
    for states in rows[2:]:
        np.testing.assert_allclose(states, rows[0], atol=2)
    assert drawn.shape[0] == 4 + 660


@pytest.mark.parametrize("count", [1, 3, 64])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_few_images_of_any_shape(count: int, channels: int) -> None:
    images = np.zeros((count, 8, 12, channels), np.uint8)
    shape = {"data__image_size": (8, 12), "data__num_channels": channels}
    network = {"model__channel_mult": (1,), "model__attention_levels": ()}
    assert data_picture(images, **shape, **network).draw().width > 90


def test_names_and_classes() -> None:
    """An image that cannot be read is replaced as in training."""
    labels = np.arange(40) % 4
    classes = ("zero", "one", "two", "three")
    source = ArrayImages(np.zeros((40, 8, 8), np.uint8), labels=labels, classes=classes)
    shown = DataPicture(resolve(tiny_config()), WithDamage(source, {0}))
    assert shown._caption(0) == "image 1\none"
    assert shown._caption(7) == "image 7\nthree"


def test_a_caption_is_as_wide_as_its_image() -> None:
    font = ImageFont.load_default(12)
    assert _fitting("a.png", 96, font) == "a.png"
    long = _fitting("folder/of/many/scans/sub-012/slice-07.png", 96, font)
    assert long.endswith("slice-07.png")
    assert font.getlength(long) <= 96
    with torch.no_grad():
        assert sheet([("", torch.zeros(2, 3, 300, 200), [])], 2).height < 300
    widths = [sheet([(name, torch.zeros(1, 1, 8, 8), [])], 1).width for name in ("a", "long " * 20)]
    assert widths[1] > widths[0] + 300, "a long label does not run into the pictures"
