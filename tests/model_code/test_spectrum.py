"""Moments of DCT coefficients against NumPy and SciPy."""

import math

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from model_code.dct import eigenvalues
from model_code.spectrum import DCTMoments, radii_of, shells_of


def test_moments_of_batches_are_those_of_all_images() -> None:
    images = torch.from_numpy(np.random.default_rng(0).random((50, 3, 6, 10)))
    one = DCTMoments(3, 6, 10)
    for batch in (*images.split(7), images[:0]):
        one.add(batch)
    coefficients = dctn(images.numpy(), axes=(2, 3), norm="ortho")
    assert one.count == 50
    np.testing.assert_allclose(one.mean, coefficients.mean(0), atol=1e-5)
    np.testing.assert_allclose(one.variance, coefficients.var(0, ddof=1), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(("height", "width"), [(28, 28), (24, 40), (40, 24), (7, 1)])
def test_shells_are_the_frequencies_of_equal_lambda(height: int, width: int) -> None:
    """In their order; and radii are roots of lambda, in steps of the longer axis."""
    rates, shells = eigenvalues(height, width), shells_of(height, width)
    for shell in shells.unique():
        inside = rates[shells == shell]
        torch.testing.assert_close(inside, inside[:1].expand_as(inside), rtol=1e-12, atol=0)
    order = shells.flatten().argsort(stable=True)
    steps = rates.flatten()[order].diff() / rates.max()
    assert ((steps > 1e-9) == (shells.flatten()[order].diff() > 0)).all()
    radii = rates.sqrt() * max(height, width) / math.pi
    torch.testing.assert_close(radii_of(height, width), radii)
