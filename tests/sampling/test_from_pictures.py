"""Pictures that samples are made from: read as they are, or refused in one line."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sample
from scripts.config.flags import parse
from scripts.config.paths import ROOT
from scripts.sampling.from_pictures import parse_blurs, read_pictures
from tests.conftest import bad_input

SAMPLER: Any = SimpleNamespace(shape=(3, 32, 32))
EMOJI = ROOT / "runs/emoji/pretrained"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two of 8 x 8 pixels, one of another size, one wide, one that is none at all."""
    rng = np.random.default_rng(0)
    for name, size in (("same/a", (8, 8)), ("same/b", (8, 8)), ("c", (9, 9)), ("wide", (8, 12))):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    return tmp_path


def test_pictures_are_read_at_their_size_or_resized(pictures: Path) -> None:
    read = read_pictures(pictures / "same", "--super_resolve", SAMPLER)
    assert read.shape == (2, 3, 8, 8)
    pixels = np.asarray(Image.open(pictures / "same/b.png")).transpose(2, 0, 1)
    assert torch.equal((read[1] * 255).round().byte(), torch.from_numpy(pixels.copy()))
    assert read_pictures(pictures / "wide.png", "--mask", SAMPLER).shape == (1, 3, 8, 12)
    assert read_pictures(pictures / "c.png", "--edit", SAMPLER, (3, 32, 32)).shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (".", "--mask=.*: must be images of one size, has 8 x 8, 9 x 9"),
        ("damaged.png", "--mask=.*damaged.png.*no image, or damaged"),
        ("missing.png", "--mask=.*missing.png"),
    ],
)
def test_pictures_that_are_refused(name: str, message: str, pictures: Path) -> None:
    for other in ("wide.png", "damaged.png") if name == "." else ():
        (pictures / other).unlink()
    with bad_input(message):
        read_pictures(pictures / name, "--mask", SAMPLER)


def test_blurs() -> None:
    assert parse_blurs("2,4.5") == [2, 4.5]
    with bad_input("--blur=2,x: must be numbers of pixels"):
        parse_blurs("2,x")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--super_resolve={}/c.png", "--super_resolve: 9 x 9 pixels; .* 32 x 32"),
        ("--inpaint={}/c.png --mask={}/c.png", "--mask: has 9 x 9 pixels"),
        ("--inpaint={}/c.png --mask={}/same", "--mask=.*: 2 images, where one is needed"),
        ("--edit={}/c.png --blur=99", "--blur=99: must be from"),
        ("--edit={0} --blur=2 --out={0}/made", "pictures there would become images of --edit"),
    ],
)
def test_nothing_is_written_where_pictures_do_not_fit(
    words: str, message: str, pictures: Path, tmp_path: Path
) -> None:
    options = [word.format(pictures, pictures) for word in words.split()]
    if "--out" not in words:
        options.append(f"--out={tmp_path / 'out'}")
    with bad_input(message):
        sample.draw(parse("sample", ["sample.py", f"--workdir={EMOJI}", *options]))
    assert not list(tmp_path.rglob("settings.json"))
