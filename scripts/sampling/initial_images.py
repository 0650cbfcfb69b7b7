"""Images of one's own that samples start from, in place of the prior: held out, of a folder, of an
array, or a single one.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from ml_collections import ConfigDict

from model_code.prior import Prior
from model_code.unet import image_shape
from scripts.data.datasets import Split, load_images, open_images
from scripts.data.images import ImageSource
from scripts.data.labels import find_classes
from scripts.data.loader import readable_batch
from scripts.errors import UserError, printable
from scripts.runtime.randomness import Purpose, stream


class DataPrior(Prior):
    """States made from images when asked for, where a checkpoint holds no prior or samples start
    from other images.
    """

    def __init__(
        self,
        count: int,
        images: Callable[[list[int]], torch.Tensor],
        corrupt: Callable[[torch.Tensor], torch.Tensor],
        labels: torch.Tensor | None = None,
    ) -> None:
        """images: indices below `count` to images (B, C, H, W) in [0, 1]; corrupt: from these to
        the states' means; labels: of the images.
        """
        self.count, self.images, self.corrupt, self.labels = count, images, corrupt, labels

    def __len__(self) -> int:
        return self.count

    def means(self, indices: torch.Tensor) -> torch.Tensor:
        """Those of these images."""
        return self.corrupt(self.images(indices.tolist()))


@dataclass(frozen=True)
class InitialImages:
    """Images that samples start from: sample i from image i // per_image, modulo `count`, in their
    order; or if classes are asked for, from one image of each after the other.
    """

    images: Callable[[list[int]], torch.Tensor]
    """From indices below `count` to images (B, C, H, W) in [0, 1]."""
    count: int
    per_image: int = 1
    shuffled: bool = False
    """Whether their order is a function of the seed: many data sets are sorted by class."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Plain data that describe the images."""
    files: dict[str, str] = field(default_factory=dict)
    """Their version, by the split of the configuration's data set, or as "init"."""
    labels: np.ndarray | None = None
    """Classes of the images, int64 (count,), where they have any."""
    asked: tuple[int, ...] = ()
    """The classes of which images are taken, each with at least one image; all by default."""

    def origins(self, seed: int, indices: Sequence[int]) -> list[int]:
        """The image that each sample starts from."""
        shuffled = stream(seed, Purpose.SAMPLE_PRIOR, step=1).permutation(self.count)
        order = shuffled if self.shuffled else np.arange(self.count)
        places = np.array(indices) // self.per_image
        if not self.asked:
            return order[places % self.count].tolist()
        assert self.labels is not None
        of_class = [order[self.labels[order] == label] for label in self.asked]
        chosen = ((of_class[place % len(of_class)], place // len(of_class)) for place in places)
        return [int(images[place % len(images)]) for images, place in chosen]


def open_initial_images(
    init: str, data: ConfigDict, per_image: int, classes: str | None = None
) -> InitialImages:
    """What --init names, of the shape of the configuration's images: its held_out or train, or as
    `open_images` reads.

    classes: what --class says, if that chooses among the former. Raises UserError for whatever is
    missing or cannot be read.
    """
    own = init in ("held_out", "train")
    if own:
        source = load_images(data, cast(Split, init))
    else:
        source = open_images(init, "--init", image_shape(data), data)
    name = init.rstrip("/").rpartition("/")[2]
    name = f"{name}_folder" if name in ("held_out", "train") and not own else name
    files, settings = {init if own else "init": source.version()}, {"init": name}
    asked: tuple[int, ...] = ()
    if own and classes is not None:
        if source.labels is None:
            none = f"the {init} images of {data.dataset!r} have no labels: set config.data.labels"
            raise UserError(f"--class={classes}: {none}")
        asked, settings["class"] = find_classes(classes, source.classes), classes
        if empty := [source.classes[c] for c in asked if c not in source.labels]:
            raise UserError(f"--class={classes}: no {init} image is of {printable(empty[0])}")
    images = unit_images(source, data)
    return InitialImages(
        images, len(source), per_image, own, settings, files, source.labels if own else None, asked
    )


def unit_images(source: ImageSource, data: ConfigDict) -> Callable[[list[int]], torch.Tensor]:
    """From indices to images (B, C, H, W) in [0, 1], dequantised on average where the configuration
    says so.

    An unreadable image is replaced by the next readable one, with a warning.
    """

    def images(indices: list[int]) -> torch.Tensor:
        """Read these images."""
        batch = readable_batch(source, indices, data)
        if batch.unreadable:
            names = ", ".join(batch.unreadable)
            warnings.warn(f"prior: skipped unreadable images {names}", stacklevel=2)
        return batch.images

    return images
