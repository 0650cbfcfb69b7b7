"""Pictures made worse in known ways: what a measure of samples must be able to order.

Images float32 (B, C, H, W) in [0, 1] to images of the same shape.
"""

from collections.abc import Callable

import numpy as np
import torch
from torchvision.transforms import functional as transforms

Corruption = Callable[[torch.Tensor, np.random.Generator], torch.Tensor]
GREY_LEVEL = 1 / 255


def noise(images: torch.Tensor, std: float, rng: np.random.Generator) -> torch.Tensor:
    """Add normal noise of standard deviation `std`, and clip."""
    drawn = torch.from_numpy(rng.standard_normal(images.shape, np.float32))
    return (images + std * drawn.to(images.device)).clamp(0, 1)


def blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Apply a Gaussian blur of `sigma` pixels."""
    return transforms.gaussian_blur(images, [11, 11], [sigma, sigma])


def blends(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Each the mean of two pictures."""
    return (images + images.roll(int(rng.integers(1, len(images))), 0)) / 2


def shuffled_blocks(images: torch.Tensor, per_side: int, rng: np.random.Generator) -> torch.Tensor:
    """Cut into per_side^2 blocks, which change places: none of the pictures stays as it is.

    What is left over of sides that `per_side` does not divide stays where it is.
    """
    height, width = (side // per_side for side in images.shape[2:])
    places = [
        (slice(y * height, (y + 1) * height), slice(x * width, (x + 1) * width))
        for y in range(per_side)
        for x in range(per_side)
    ]
    shuffled = images.clone()
    for image, result in zip(images, shuffled, strict=True):
        order = rng.permutation(len(places))
        if (order == np.arange(len(places))).all():
            order = np.roll(order, 1)
        for place, source in zip(places, order, strict=True):
            result[:, *place] = image[:, *places[source]]
    return shuffled


def random_phases(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Each with its own power spectrum and mean, and the phases of white noise."""
    drawn = rng.standard_normal((len(images), 1, *images.shape[2:]), np.float32)
    phases = torch.fft.fft2(torch.from_numpy(drawn).to(images.device))
    phases = phases / phases.abs()
    phases[..., 0, 0] = 1  # the mean
    return torch.fft.ifft2(torch.fft.fft2(images).abs() * phases).real.clamp(0, 1)


CORRUPTIONS: dict[str, Corruption] = {
    "as they are": lambda images, rng: images,
    "noise of 10 grey levels": lambda images, rng: noise(images, 10 * GREY_LEVEL, rng),
    "blur of 0.6 pixels": lambda images, rng: blur(images, 0.6),
    "noise of 25 grey levels": lambda images, rng: noise(images, 25 * GREY_LEVEL, rng),
    "blur of 1.2 pixels": lambda images, rng: blur(images, 1.2),
    "blends of two": blends,
    "quarters shuffled": lambda images, rng: shuffled_blocks(images, 2, rng),
    "sixteen blocks shuffled": lambda images, rng: shuffled_blocks(images, 4, rng),
    "random phases": random_phases,
}
"""About in the order in which people would rank them, best first."""
OTHER_THINGS = ("blends of two", "quarters shuffled", "sixteen blocks shuffled", "random phases")
"""Those that no longer show what the picture showed."""
