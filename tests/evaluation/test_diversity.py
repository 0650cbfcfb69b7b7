"""Variance within and between initial images: against analysis of variance and closed
forms."""

import numpy as np
import pytest
import torch

from model_code import build_process
from model_code.spectrum import DCTMoments
from scripts.data.datasets import load_images
from scripts.evaluation.pixels import (
    octaves,
    predicted_within,
    variance_components,
)
from tests.tiny import tiny_config

CPU = torch.device("cpu")
SIZE = 8
BINS = octaves(SIZE, SIZE)


def test_sums_are_plain_analysis_of_variance() -> None:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (15, 3, 6, 8), dtype=np.uint8)
    one_bin = torch.zeros(6, 8, dtype=torch.int64)
    found, between = variance_components(images, 5, one_bin, CPU)
    x = (images / 255).reshape(3, 5, -1)
    within = sum(x[s].var(0, ddof=1).sum() for s in range(3)) / 3
    assert found.mean() == pytest.approx(within, rel=1e-5)
    assert between.mean() == pytest.approx(x.mean(1).var(0, ddof=1).sum() - within / 5, rel=1e-4)


def test_predictions_for_heat() -> None:
    """What the prior hands over is exp(-2 lambda t_K) of each coefficient; an ideal reverse process
    is Wiener's filter.
    """
    config = tiny_config()
    process, source = build_process(config), load_images(config.data, "train")
    images = torch.from_numpy(np.stack([source[i] for i in range(200)])) / 255
    prior = process.build_prior([images])
    data, handed = DCTMoments(1, SIZE, SIZE), DCTMoments(1, SIZE, SIZE)
    data.add(images)
    handed.add(prior.means(torch.arange(200)))
    exact = torch.arange(SIZE * SIZE).view(SIZE, SIZE)
    not_handed_over, ideal = predicted_within(data.variance, handed.variance, 0.5, exact)
    n, m = np.mgrid[:SIZE, :SIZE]
    decay = np.exp(
        -2 * np.pi**2 * (n**2 + m**2) / SIZE**2 * config.model.blur_sigma_max**2 / 2
    ).ravel()
    np.testing.assert_allclose(not_handed_over, 1 - decay, atol=1e-4)
    # Wiener: of y = a x + noise, x keeps var(x) - (a var(x))^2 / (a^2 var(x) + noise^2).
    x = data.variance.numpy().ravel()
    left = x - decay * x**2 / (decay * x + 0.5**2)
    np.testing.assert_allclose(ideal, left / x, rtol=1e-3)
    _, without_first_states = predicted_within(data.variance, 0 * data.variance, 0.0, BINS)
    np.testing.assert_allclose(without_first_states, 1)
