"""Copies of training images are found, what is no copy is not taken for one, and intervals are as wide as they should be."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from scripts.evaluation.classifier import ClassifierFeatures, Network
from scripts.tools.memorization import classify, compare, nearer_than_held_out, nearest, study
from scripts.training.loop import train
from tests.conftest import tiny_config


def test_neighbours_are_scipys_whatever_the_blocks() -> None:
    rng = np.random.default_rng(0)
    points, others = rng.normal(size=(7, 5)).astype(np.float32), rng.normal(size=(23, 5)).astype(np.float32)
    distances = cdist(points, others)
    for size in (1, 4, 100):
        blocks = [(np.arange(23)[start : start + size], others[start : start + size]) for start in range(0, 23, size)]
        index, distance = nearest(points, blocks)
        np.testing.assert_allclose(distance, np.sort(distances, axis=1)[:, :2], rtol=1e-6)
        np.testing.assert_array_equal(index, distances.argsort(axis=1)[:, :2])


def test_a_copy_stands_out() -> None:
    rng = np.random.default_rng(1)
    originals = rng.random((50, 64), np.float32)
    slightly_changed = originals[:5] + 1e-3 * rng.random((5, 64), np.float32)
    points = np.concatenate([originals[5:10], slightly_changed, rng.random((10, 64), np.float32)])
    training = [(np.arange(50), originals)]
    index, samples = nearest(points, training)
    assert samples[:5, 0].tolist() == [0.0] * 5
    assert index[:10, 0].tolist() == [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]
    figures = compare(samples, nearest(rng.random((40, 64), np.float32), training)[1])
    assert figures["copies"]["value"] == 0.5
    assert 0.5 <= figures["nearer_than_99%_of_held_out"]["value"] <= 0.6
    assert figures["copies_held_out"]["value"] == 0.0


@pytest.mark.parametrize("scale", [1.0, 0.2])
def test_the_interval_counts_the_thresholds_own_error(scale: float) -> None:
    """In repeated draws of samples and held-out images about 95% of intervals hold the truth, and they are not too wide."""
    rng = np.random.default_rng(0)
    found = [nearer_than_held_out(scale * rng.random(500), rng.random(500)) for _ in range(200)]
    truth = 0.01 / scale
    assert np.mean([interval["low"] <= truth <= interval["high"] for interval in found]) >= 0.93
    width = np.mean([interval["high"] - interval["low"] for interval in found]) / (2 * 1.96)
    assert 0.85 < width / np.std([interval["value"] for interval in found]) < 1.3


def test_classes_are_compared_with_the_training_set() -> None:
    """A classifier that sees one of two classes by the sign of one feature, and is sure of it."""
    network = Network(1, 2)
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.zero_()
        network.head.weight[1, 0] = 9.0
    classifier = ClassifierFeatures(network, torch.device("cpu"), 0.5)
    features = np.zeros((100, classifier.num_features), np.float32)
    features[:, 0] = np.where(np.arange(100) < 30, 1.0, -1.0)
    figures = classify(classifier, features, features[:10], np.array([7000, 3000]))
    assert figures["samples_of_each_class"] == [70, 30]
    assert figures["chi_squared"] == {"value": 0.0, "degrees_of_freedom": 1, "p_value": 1.0}
    assert figures["surer_than_0.9"]["value"] == 1.0
    assert classify(classifier, features, features, np.array([5000, 5000]))["chi_squared"]["value"] == pytest.approx(16)


def test_a_run_without_classes(tiny_array: Path, tmp_path: Path) -> None:
    """Pixels are compared for any data; figures and picture are left, and are functions of the run."""
    config = tiny_config(data__dataset="npy", data__path=str(tiny_array))
    assert train(config, tmp_path) == 0
    figures, path = study(config, tmp_path, 0, None, 3)
    assert "classes" not in figures
    assert figures["pixels"]["copies"]["num_images"] == 3
    assert json.loads(path.with_suffix(".json").read_text()) == figures
    assert path.stat().st_size > 5_000
    assert study(config, tmp_path, 0, None, 3)[0] == figures
