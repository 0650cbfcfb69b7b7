"""What the network will see: training images as they are read, and their states at a few levels."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from model_code import PROCESSES
from model_code.gaussian import GaussianProcess
from model_code.process import at_level
from scripts.config.resolve import Experiment
from scripts.data.images import ImageSource, spread_evenly
from scripts.data.loader import readable_batch
from scripts.errors import printable
from scripts.runtime.randomness import Purpose, normal_by_index
from scripts.sampling.editing import length_scales
from scripts.sampling.output import sheet

COLUMNS, ROWS, STATES = 8, 2, 4
"""Images in a row, rows of images, and levels at which the first row is shown."""


class DataPicture:
    """A few training images, spread evenly, as training reads them."""

    def __init__(self, experiment: Experiment, source: ImageSource) -> None:
        """Raises ReadingFailed if no image can be read."""
        self._experiment, self._source = experiment, source
        wanted = spread_evenly(len(source))
        self._batch = readable_batch(source, wanted, experiment.config.data)
        self._images = self._batch.images

    def warning(self) -> str:
        """Return a line for images that hardly differ; empty for others."""
        model = self._experiment.config.model
        reads_sigma = "model.sigma" in PROCESSES[model.process].reads
        if not reads_sigma or len(self._images) < 2:
            return ""
        deviation = self._images.var(0).mean().sqrt().item()  # of a pixel about the mean image
        if deviation >= model.sigma:
            return ""
        found = f"{len(self._images)} training images differ by {deviation:.2g} a pixel"
        shown = f"less than config.model.sigma = {model.sigma:g}"
        return f"{found} (standard deviation), {shown}: samples may be their mean; see data.png"

    def draw(self) -> Image.Image:
        """Rows of images with their names and classes, then of the first ones' states."""
        places = spread_evenly(len(self._images), ROWS * COLUMNS)
        rows = [places[i : i + COLUMNS] for i in range(0, len(places), COLUMNS)]
        cells = [("", self._images[row], [self._caption(i) for i in row]) for row in rows]
        for k, label in self._levels():
            cells.append((label, self._states(rows[0], k), []))
        return sheet(cells, len(rows[0]))

    def _caption(self, i: int) -> str:
        """Name and, if there are any, class of an image."""
        name, labels = self._source.name(int(self._batch.indices[i])), self._batch.labels
        if labels is None:
            return name
        return f"{name}\n{printable(self._source.classes[labels[i]])}"

    def _levels(self) -> list[tuple[int, str]]:
        """Return a few levels of the chain, with their numbers and blur for a label."""
        process = self._experiment.process
        chain = process.chain[-2::-1]  # from the first level to K
        steps = np.linspace(0, len(chain) - 1, min(STATES + 1, len(chain)))[-STATES:]
        labels = {}
        for k in (chain[int(step)] for step in steps):
            labels[k] = f"level {k}"
            if not isinstance(process, GaussianProcess):
                continue
            scale = length_scales(process)[k].item()
            if 0 < scale < math.inf:
                labels[k] += f"\nblur {scale:.3g} px"
        return list(labels.items())

    def _states(self, rows: Sequence[int], k: int) -> torch.Tensor:
        """States at level k as images, with noise that is a function of seed, level and image."""
        process, images = self._experiment.process, self._images[list(rows)]
        places = [(k, i) for i in rows]
        seed, shape = self._experiment.config.seed, tuple(images.shape[1:])
        device = process.device
        eps = normal_by_index(device, seed, Purpose.SPECTRUM_NOISE, places, shape)
        states, _ = process.corrupt(images.to(device), at_level(k, eps), eps)
        return process.to_images(states)
