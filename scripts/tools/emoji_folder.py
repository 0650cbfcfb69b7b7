"""A folder of emoji to train on, from the npm package emoji-datasource-google (Noto, Apache License 2.0).

npm pack emoji-datasource-google && tar xzf emoji-datasource-google-*.tgz
python -m scripts.tools.emoji_folder --package package --out data/emoji
"""

import json
from pathlib import Path

from absl import flags
from PIL import Image

from scripts.config import run
from scripts.errors import UserError
from scripts.io import atomic_write, make_directory, user_path

SIZE = 32
LEFT_OUT = ("Flags", "Component")
"""Categories that are rectangles of stripes, or parts of others."""


def main() -> int:
    """Write the folder that the flags name."""
    out = user_path(flags.FLAGS.out, "--out")
    print(f"{write_folder(user_path(flags.FLAGS.package, '--package'), out)} images in {out}")
    return 0


def write_folder(package: Path, out: Path) -> int:
    """Write the emoji of the unpacked package as SIZE x SIZE PNG files on white, and return how many.

    One of each kind: variants that differ in the colour of skin only, which the package lists under the plain one, are left
    out. Raises UserError if the package is not there.
    """
    table = package / "emoji.json"
    if not table.is_file():
        raise UserError(f"--package={package}: there is no emoji.json in it; unpack emoji-datasource-google there")
    make_directory(out, "--out")
    written = 0
    for emoji in json.loads(table.read_text()):
        source = package / "img" / "google" / "64" / emoji["image"]
        if emoji["category"] in LEFT_OUT or not emoji["has_img_google"] or not source.is_file():
            continue
        with Image.open(source) as image:
            drawn = image.convert("RGBA")
        white = Image.new("RGBA", drawn.size, "white")
        white.alpha_composite(drawn)
        with atomic_write(out / emoji["image"], durable=False) as temporary:
            white.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS).save(temporary)
        written += 1
    return written


if __name__ == "__main__":
    flags.DEFINE_string("package", None, "Folder that the package was unpacked in.", required=True)
    flags.DEFINE_string("out", None, "Folder to write to.", required=True)
    run(main)
