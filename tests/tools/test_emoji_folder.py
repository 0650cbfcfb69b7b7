"""The folder of emoji that the README's colour example trains on."""

import json
from pathlib import Path

import pytest
from PIL import Image

from scripts.errors import UserError
from scripts.tools.emoji_folder import SIZE, write_folder


def test_one_picture_of_each_kind_on_white(tmp_path: Path) -> None:
    images = tmp_path / "package" / "img" / "google" / "64"
    images.mkdir(parents=True)
    for name in ("a.png", "flag.png", "undrawn.png"):
        picture = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
        picture.paste((255, 0, 0, 255), (32, 0, 64, 64))
        picture.save(images / name)
    table = [
        {"image": "a.png", "category": "Objects", "has_img_google": True},
        {"image": "flag.png", "category": "Flags", "has_img_google": True},
        {"image": "undrawn.png", "category": "Objects", "has_img_google": False},
        {"image": "missing.png", "category": "Objects", "has_img_google": True},
    ]
    (tmp_path / "package" / "emoji.json").write_text(json.dumps(table))
    assert write_folder(tmp_path / "package", tmp_path / "out") == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]
    with Image.open(tmp_path / "out" / "a.png") as picture:
        assert (picture.size, picture.mode) == ((SIZE, SIZE), "RGB")
        assert picture.getpixel((2, 16)) == (255, 255, 255), "what is transparent becomes white, not black"
        assert picture.getpixel((29, 16)) == (255, 0, 0)


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no emoji\.json in it"):
        write_folder(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
