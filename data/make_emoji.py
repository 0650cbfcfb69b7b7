"""Make data/emoji32.npz: Noto's emoji (Apache License 2.0) at 32 x 32 pixels.

npm pack emoji-datasource-google@16.0.0
PYTHONPATH=. python data/make_emoji.py emoji-datasource-google-16.0.0.tgz
"""

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np

from scripts.data.datasets import split_indices
from scripts.data.images import fit, opened_image

SIZE = 32
LEFT_OUT = ("Flags", "Component")
"""Categories that are not drawings; variants of skin are no entries of their own."""


def make(package: Path, out: Path) -> None:
    """Write `images` uint8 (N, 32, 32, 3) over white, `labels` uint8 (N,), `held_out` bool (N,),
    `names` (N,) and `categories`. A tenth is held out, by a hash of the name.
    """
    files = {}
    with tarfile.open(package) as archive:
        # Read once and in order: a compressed archive cannot be read at random.
        for member in archive:
            if member.name.startswith(("package/emoji.json", "package/img/google/64/")):
                name = member.name.removeprefix("package/")
                files[name] = archive.extractfile(member).read()
    emoji = [one for one in json.loads(files["emoji.json"]) if one["category"] not in LEFT_OUT]
    emoji.sort(key=lambda one: one["sort_order"])
    pictures = []
    for one in emoji:
        encoded = io.BytesIO(files[f"img/google/64/{one['image']}"])
        with opened_image(encoded, one["image"]) as image:
            pictures.append(fit(image, (3, SIZE, SIZE)))
    categories = sorted({one["category"] for one in emoji})
    names = [one["short_name"] for one in emoji]
    held_out = np.zeros(len(names), bool)
    held_out[split_indices([name.encode() for name in names], "held_out")] = True
    np.savez_compressed(
        out,
        images=np.stack(pictures).transpose(0, 2, 3, 1),
        labels=np.array([categories.index(one["category"]) for one in emoji], np.uint8),
        held_out=held_out,
        names=np.array(names),
        categories=np.array(categories),
    )


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(__file__).with_name("emoji32.npz"))
