"""Make data/emoji32.npz: Noto's emoji (Apache License 2.0) at 32 x 32 pixels, from the npm package
emoji-datasource-google.

npm pack emoji-datasource-google@16.0.0
python -m scripts.tools.emoji --package emoji-datasource-google-16.0.0.tgz --out data/emoji32.npz
"""

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from scripts.config.flags import run
from scripts.data.datasets import split_indices
from scripts.data.images import decoded
from scripts.errors import UserError
from scripts.storage.files import atomic_write

SIZE = 32
LEFT_OUT = ("Flags", "Component")
"""Categories that are not drawings; variants of skin are no entries of their own."""


def read_package(package: Path) -> dict[str, Any]:
    """`images` uint8 (N, 32, 32, 3) over white, `labels` uint8 (N,), `held_out` bool (N,), `names`
    (N,) and `categories`.

    A tenth is held out, by a hash of the name. Raises UserError for a file that is not that
    package.
    """
    try:
        files = {}
        with tarfile.open(
            package
        ) as archive:  # read once, in order: a compressed archive cannot be read at random
            for member in archive:
                if member.name.startswith(("package/emoji.json", "package/img/google/64/")):
                    files[member.name.removeprefix("package/")] = archive.extractfile(member).read()  # type: ignore[union-attr]
        emoji = [one for one in json.loads(files["emoji.json"]) if one["category"] not in LEFT_OUT]
        emoji.sort(key=lambda one: one["sort_order"])
        images = [
            decoded(files[f"img/google/64/{one['image']}"], one["image"], (3, SIZE, SIZE))
            for one in emoji
        ]
    except (OSError, KeyError, ValueError, tarfile.TarError) as error:
        raise UserError(
            f"--package={package}: expected the .tgz of emoji-datasource-google ({error})"
        ) from None
    categories = sorted({one["category"] for one in emoji})
    names = [one["short_name"] for one in emoji]
    held_out = np.zeros(len(names), bool)
    held_out[split_indices([name.encode() for name in names], "held_out")] = True
    return {
        "images": np.stack(images).transpose(0, 2, 3, 1),
        "labels": np.array([categories.index(one["category"]) for one in emoji], np.uint8),
        "held_out": held_out,
        "names": np.array(names),
        "categories": np.array(categories),
    }


def main() -> int:
    """Read, write."""
    arrays, out = read_package(flags.FLAGS.package), flags.FLAGS.out
    with atomic_write(out) as temporary:
        np.savez_compressed(temporary, **arrays)
    print(
        f"{len(arrays['images'])} pictures, {arrays['held_out'].sum()} held out, {out.stat().st_size / 1e6:.1f} MB: {out}"
    )
    return 0


if __name__ == "__main__":
    run("emoji", main)
