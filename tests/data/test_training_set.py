"""One pass over the training images: what it sees, and the moments that come of it."""

import numpy as np
from scipy.fft import dctn

from scripts.data.images import ArrayImages
from scripts.data.loader import UnreadableImages
from scripts.data.training_set import dct_moments, training_images
from tests.images import WithDamage, random_pixels
from tests.tiny import tiny_config


def test_moments_are_of_all_readable_images_and_their_mirror_images() -> None:
    pixels = random_pixels(11, 8, 8)
    source, unreadable = WithDamage(ArrayImages(pixels), {4}), UnreadableImages()
    config = tiny_config(data__random_flip=True)
    batches = training_images(source, config, unreadable, "a test")
    moments = dct_moments(batches, source.shape)
    images = np.stack([source[i] for i in range(11) if i != 4]) / 255
    coefficients = dctn(np.concatenate([images, images[..., ::-1]]), axes=(2, 3), norm="ortho")
    assert (moments.count, len(unreadable)) == (20, 1)
    np.testing.assert_allclose(moments.mean, coefficients.mean(0), atol=1e-6)
    np.testing.assert_allclose(moments.variance, coefficients.var(0, ddof=1), rtol=1e-4, atol=1e-9)
