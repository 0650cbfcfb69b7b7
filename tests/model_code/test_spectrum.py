"""Moments of DCT coefficients against NumPy and SciPy."""

import numpy as np
import torch
from scipy.fft import dctn

from model_code.spectrum import DCTMoments


def test_moments_of_batches_are_those_of_all_images() -> None:
    images = torch.from_numpy(np.random.default_rng(0).random((50, 3, 6, 10)))
    one = DCTMoments(3, 6, 10)
    for batch in (*images.split(7), images[:0]):
        one.add(batch)
    coefficients = dctn(images.numpy(), axes=(2, 3), norm="ortho")
    assert one.count == 50
    np.testing.assert_allclose(one.mean, coefficients.mean(0), atol=1e-5)
    np.testing.assert_allclose(one.variance, coefficients.var(0, ddof=1), rtol=1e-4, atol=1e-9)
