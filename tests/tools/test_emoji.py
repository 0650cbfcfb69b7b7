"""The embedded emoji: made from the package, and what comes with the program."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.data.datasets import DATA, load_images
from scripts.errors import UserError
from scripts.tools.emoji import read_package
from tests.tiny import tiny_config


def package(path: Path, emoji: list[dict[str, object]]) -> Path:
    """An archive as npm's; each picture is a transparent square with an opaque middle of its own
    colour.
    """
    with tarfile.open(path, "w:gz") as archive:

        def add(name: str, data: bytes) -> None:
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))

        for i, one in enumerate(emoji):
            pixels = np.zeros((64, 64, 4), np.uint8)
            pixels[16:48, 16:48] = (10 * i, 0, 0, 255)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            add(f"img/google/64/{one['image']}", file.getvalue())
        add("emoji.json", json.dumps(emoji).encode())
    return path


def entry(name: str, category: str, order: int) -> dict[str, object]:
    return {"short_name": name, "image": f"{name}.png", "category": category, "sort_order": order}


def test_pictures_over_white_in_order_without_flags(tmp_path: Path) -> None:
    emoji = [
        entry("moon", "Travel", 2),
        entry("flag-fi", "Flags", 0),
        entry("cat", "Animals", 1),
        entry("tone", "Component", 3),
    ]
    arrays = read_package(package(tmp_path / "emoji.tgz", emoji))
    assert arrays["names"].tolist() == ["cat", "moon"]
    assert [arrays["categories"][label] for label in arrays["labels"]] == ["Animals", "Travel"]
    assert arrays["images"].shape == (2, 32, 32, 3)
    assert (arrays["images"][:, 0, 0] == 255).all()
    assert arrays["images"][:, 16, 16].tolist() == [[20, 0, 0], [0, 0, 0]]
    assert arrays["held_out"].sum() == 1
    (tmp_path / "emoji.txt").write_text("no archive")
    with pytest.raises(
        UserError, match=r"--package=.*emoji\.txt: expected the \.tgz of emoji-datasource-google"
    ):
        read_package(tmp_path / "emoji.txt")


def test_what_comes_with_the_program() -> None:
    """About 1,600 pictures at most 3 MB, a tenth of them held out, and their licence."""
    data = tiny_config(data__dataset="emoji32", data__image_size=32, data__num_channels=3).data
    train, held_out = load_images(data, "train"), load_images(data, "held_out")
    assert (len(train), len(held_out), train[0].shape) == (1473, 163, (3, 32, 32))
    assert (DATA / "emoji32.npz").stat().st_size < 3e6
    assert "Apache License" in (DATA / "emoji32.LICENSE").read_text()
