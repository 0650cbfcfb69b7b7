"""Make data/emoji32.npz: two vendors' pictures of the same emoji at 32 x 32 pixels, Noto (Apache
License 2.0) and Twemoji (CC BY 4.0).

npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0
PYTHONPATH=. python data/make_emoji.py emoji-datasource-google-16.0.0.tgz \
    emoji-datasource-twitter-16.0.0.tgz
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
VENDORS = ("google", "twitter")
LEFT_OUT = ("Flags", "Component")
"""Categories that are not drawings; variants of skin are no entries of their own."""


def read(package: Path, vendor: str) -> tuple[list[dict], list[np.ndarray]]:
    """The package's emoji in their order, and their pictures uint8 (3, 32, 32) over white."""
    files = {}
    with tarfile.open(package) as archive:
        # Read once and in order: a compressed archive cannot be read at random.
        for member in archive:
            if member.name.startswith(("package/emoji.json", f"package/img/{vendor}/64/")):
                name = member.name.removeprefix("package/")
                files[name] = archive.extractfile(member).read()
    emoji = [
        one
        for one in json.loads(files["emoji.json"])
        if one["category"] not in LEFT_OUT and one[f"has_img_{vendor}"]
    ]
    emoji.sort(key=lambda one: one["sort_order"])
    pictures = []
    for one in emoji:
        encoded = io.BytesIO(files[f"img/{vendor}/64/{one['image']}"])
        with opened_image(encoded, one["image"]) as image:
            pictures.append(fit(image, (3, SIZE, SIZE)))
    return emoji, pictures


def make(packages: list[Path], out: Path) -> None:
    """Write `images` uint8 (N, 32, 32, 3), the first vendor's before the second's, `labels` uint8
    (N,), `held_out` bool (N,), `names` and `vendors` (N,), and `categories`.

    A tenth of the first vendor's is held out, by a hash of the name; all pictures of one name are
    on one side.
    """
    emoji, pictures, vendors = [], [], []
    for vendor, package in zip(VENDORS, packages, strict=True):
        of_vendor, drawn = read(package, vendor)
        emoji += of_vendor
        pictures += drawn
        vendors += [vendor] * len(drawn)
    categories = sorted({one["category"] for one in emoji})
    names = [one["short_name"] for one in emoji]
    first = names[: vendors.count(VENDORS[0])]
    held_out = {first[i] for i in split_indices([name.encode() for name in first], "held_out")}
    np.savez_compressed(
        out,
        images=np.stack(pictures).transpose(0, 2, 3, 1),
        labels=np.array([categories.index(one["category"]) for one in emoji], np.uint8),
        held_out=np.array([name in held_out for name in names]),
        names=np.array(names),
        vendors=np.array(vendors),
        categories=np.array(categories),
    )


if __name__ == "__main__":
    make(list(map(Path, sys.argv[1:])), Path(__file__).with_name("emoji32.npz"))
