"""Nearest training images: planted copies, brute force, and the intervals' coverage."""

import numpy as np
import pytest
import scipy.fft
import scipy.spatial
import torch
from hypothesis import given
from hypothesis import strategies as st

from scripts.evaluation.pixels import (
    interval,
    low_pass,
    nearer_than_held_out,
    nearest_training_images,
    octaves,
    ratio_of_medians,
)

CPU = torch.device("cpu")


def brute_force(images: np.ndarray, training: np.ndarray, space: str) -> np.ndarray:
    """All distances (Q, M) by SciPy's DCT."""
    low = (
        low_pass(octaves(*images.shape[2:])).numpy()
        if space == "low_pass"
        else np.ones(images.shape[2:], bool)
    )
    low[0, 0] = False
    x, y = (
        scipy.fft.dctn(each / 255, axes=(2, 3), norm="ortho")[..., low].reshape(len(each), -1)
        for each in (images, training)
    )
    return scipy.spatial.distance.cdist(x, y)


@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_brute_force(block: int, seed: int) -> None:
    """Whatever the blocks, also where images are equal."""
    rng = np.random.default_rng(seed)
    training = rng.integers(0, 256, (13, 3, 6, 8), dtype=np.uint8)
    images = rng.integers(0, 256, (7, 3, 6, 8), dtype=np.uint8)
    images[3] = training[11]
    images[4] = training[2]
    images[4, 1] = images[4, 1] // 2 + 9
    parts = (
        (np.arange(100 + i, 100 + min(i + block, 13)), training[i : i + block])
        for i in range(0, 13, block)
    )
    found = nearest_training_images(images, parts, CPU)
    for space, distances, nearest in zip(("pixels", "low_pass"), *found, strict=True):
        expected = brute_force(images, training, space)
        np.testing.assert_allclose(distances, expected.min(1), rtol=1e-6, atol=1e-6)
        assert (nearest - 100).tolist() == expected.argmin(1).tolist()


def test_planted_copies() -> None:
    """Copies are found by both distances if they are brighter as a whole, by the low-pass alone if
    they are grainy.
    """
    rng = np.random.default_rng(0)
    training = rng.integers(60, 190, (300, 1, 16, 16), dtype=np.uint8)
    new, held_out = (rng.integers(60, 190, (100, 1, 16, 16), dtype=np.uint8) for _ in range(2))
    grain = rng.choice(np.array([-50, 50]), (50, 1, 16, 8)).repeat(2, axis=3)
    grain[..., 1::2] *= -1
    grainy = np.clip(training[250:].astype(int) + grain, 0, 255).astype(np.uint8)
    images = np.concatenate([new, training[200:250] + 20, grainy, held_out])
    found = nearest_training_images(images, [(np.arange(300), training)], CPU)
    for distances, nearest in zip(*found, strict=True):
        assert nearest[100:200].tolist() == list(range(200, 300))
        np.testing.assert_allclose(distances[100:150], 0, atol=1e-6)
    d = found[0][1]
    share, drawn = nearer_than_held_out(d[:200], d[200:], seed=0)
    low, high = interval(drawn)
    assert 0.45 < share < 0.55
    assert low < 0.5 < high
    assert ratio_of_medians(d[100:200], d[200:], seed=0)[0] < 0.3
    assert 0.9 < ratio_of_medians(d[:100], d[200:], seed=0)[0] < 1.1


def test_one_grey_level_is_told_from_none() -> None:
    """A distance of one grey level in one pixel, where a product in float32 would round 100 times
    as much away.
    """
    training = np.full((2, 1, 64, 64), 255, np.uint8)
    training[:, :, ::2] = 0
    training[0, 0, 5, 5] = 254
    everything = [(np.arange(2), training)]
    distances, nearest = nearest_training_images(training[1:], everything, CPU)
    assert (nearest[0, 0], round(distances[0, 0], 6)) == (1, 0.0)
    apart, _ = nearest_training_images(training[1:], [(np.arange(1), training[:1])], CPU)
    assert apart[0, 0] == pytest.approx(np.sqrt(1 - 1 / 64**2) / 255, rel=1e-6)


def test_intervals_hold_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the share nearer than 99% and of the ratio of medians, for uniform distances, where both
    are known.
    """
    monkeypatch.setattr("scripts.evaluation.pixels.REPLICATES", 200)
    rng, scale = np.random.default_rng(0), 0.5
    for measure, truth in ((nearer_than_held_out, 0.01 / scale), (ratio_of_medians, scale)):
        held = []
        for i in range(150):
            low, high = interval(measure(scale * rng.random(500), rng.random(500), i)[1])
            held.append(low <= truth <= high)
        assert 0.9 <= np.mean(held) < 1
