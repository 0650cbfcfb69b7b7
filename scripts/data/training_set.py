"""One pass over all training images: for the prior, for their spectrum, or for both at once."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from ml_collections import ConfigDict

from model_code.prior import Prior, PriorBank, StoredStates
from model_code.process import Process
from model_code.schedule import matched_schedule
from model_code.spectrum import DCTMoments
from scripts.data.images import ImageSource
from scripts.data.loader import Batch, OrderedBatches, UnreadableImages
from scripts.errors import UserError
from scripts.runtime import distributed
from scripts.runtime.progress import progress_bar


def training_images(
    source: ImageSource,
    config: ConfigDict,
    unreadable: UnreadableImages,
    what_for: str,
) -> Iterator[Batch]:
    """All readable training images, and mirror images if training mirrors them, in batches.

    Shows progress. Of several processes each reads its part; a batch may be empty.
    """
    data = config.data
    batches = OrderedBatches(
        source,
        config.eval.batch_size,
        data.num_workers,
        data.uniform_dequantization,
        mirrored=data.random_flip,
    )
    with progress_bar(len(batches.chosen), "image", f"reading images for {what_for}") as bar:
        for batch in batches:
            unreadable.update(batch.unreadable)
            bar.update(len(batch.indices.unique()))
            yield batch


def build_prior(process: Process, batches: Iterable[Batch], with_labels: bool) -> Prior:
    """The prior of images in batches, with their labels for a network that is told them.

    Raises ValueError if there is no image.
    """
    labels: list[torch.Tensor] = []

    def images() -> Iterator[torch.Tensor]:
        for batch in batches:
            if with_labels and batch.labels is not None:
                labels.append(batch.labels)
            yield batch.images

    prior = process.build_prior(images())
    if labels and isinstance(prior, PriorBank | StoredStates):
        prior = replace(prior, labels=torch.cat(labels))
    return prior


def share_moments(moments: DCTMoments) -> DCTMoments:
    """The moments of all processes' images, the same numbers in each. A collective function."""
    shared = DCTMoments(*moments.sum.shape)
    parts = distributed.gather((moments.count, moments.sum, moments.squares))
    shared.count, shared.sum, shared.squares = (sum(part) for part in zip(*parts, strict=True))
    return shared


def dct_moments(batches: Iterable[Batch], shape: tuple[int, int, int]) -> DCTMoments:
    """Mean and variance of each DCT coefficient over images of `shape` (C, H, W)."""
    moments = DCTMoments(*shape)
    for batch in batches:
        moments.add(batch.images)
    return moments


def matched_levels(model: ConfigDict, moments: DCTMoments) -> tuple[float, ...]:
    """Blur levels that are matched to the images' spectrum; model: the configuration's section.

    Raises UserError if there are none.
    """
    try:
        power = moments.variance.sum(0)
        levels = matched_schedule(power, model.K, model.blur_sigma_min, model.blur_sigma_max)
    except ValueError as error:
        raise UserError(f"config.model.blur_schedule = 'matched': {error}") from None
    return tuple(distributed.from_main(levels.tolist()))
