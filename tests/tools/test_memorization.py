"""Copies of training images are found, and what is no copy is not taken for one."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.stats import bootstrap

from scripts.config import ROOT
from scripts.data.images import ArrayImages
from scripts.evaluation.classifier import ClassifierFeatures, _new_network
from scripts.tools.memorization import Comparison, _median, nearest, report, study, verdicts
from scripts.training.loop import train
from tests.conftest import tiny_config


def test_neighbours_are_scipys_whatever_the_blocks() -> None:
    rng = np.random.default_rng(0)
    points, others = rng.normal(size=(7, 5)).astype(np.float32), rng.normal(size=(23, 5)).astype(np.float32)
    expected = np.sort(cdist(points, others), axis=1)
    for size in (1, 4, 23, 100):
        found = nearest(points, [others[start : start + size] for start in range(0, 23, size)])
        np.testing.assert_allclose(found.distance, expected[:, 0], rtol=1e-6)
        np.testing.assert_allclose(found.second, expected[:, 1], rtol=1e-6)
        assert found.index.tolist() == cdist(points, others).argmin(1).tolist()


def test_unreadable_images_are_nobodys_neighbours() -> None:
    blocks = [np.array([[np.nan, np.nan], [3, 4]], np.float32)]
    found = nearest(np.zeros((1, 2), np.float32), blocks)
    assert (found.index.item(), found.distance.item()) == (1, 5.0)


def test_a_copy_stands_out() -> None:
    rng = np.random.default_rng(1)
    originals = rng.random((50, 64)).astype(np.float32)
    slightly = originals[:5] + 1e-3 * rng.random((5, 64)).astype(np.float32)
    samples = nearest(np.concatenate([originals[5:10], slightly, rng.random((10, 64), np.float32)]), [originals])
    assert samples.distance[:5].tolist() == [0.0] * 5
    assert samples.index[:5].tolist() == [5, 6, 7, 8, 9]
    assert samples.copies().tolist() == [True] * 10 + [False] * 10
    held_out = nearest(rng.random((40, 64), np.float32), [originals])
    figures = Comparison("pixels", samples, held_out).figures()
    assert figures["copies"]["value"] == 0.5
    assert 0.5 <= figures["nearer_than_99%_of_held_out"]["value"] <= 0.6
    assert figures["copies"]["standard_error"] == pytest.approx((0.25 / 19) ** 0.5)
    assert figures["copies_held_out"]["value"] == 0.0


def test_median_and_its_error() -> None:
    """The error is what a bootstrap says, and half the extremes' distance at worst."""
    values = np.random.default_rng(3).exponential(size=2001)
    found = _median(torch.from_numpy(values))
    assert found["value"] == np.median(values)
    assert found["standard_error"] == pytest.approx(
        bootstrap((values,), np.median, rng=0, n_resamples=2000).standard_error, rel=0.3
    )
    assert _median(torch.tensor([1.0, 2.0])) == {"value": 1.5, "standard_error": pytest.approx(0.5 / 2**0.5), "num_images": 2}
    assert _median(torch.tensor([1.0]))["standard_error"] == float("inf")


def test_verdicts() -> None:
    """A classifier that takes everything for class 2, and is sure of it."""
    network = _new_network(1, 4)
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.copy_(torch.tensor([0.0, 0.0, 9.0, 0.0]))
    images = np.random.default_rng(2).integers(256, size=(6, 8, 8), dtype=np.uint8)
    found = verdicts(
        ClassifierFeatures(network, torch.device("cpu"), 0.5), torch.from_numpy(images[:4, None]), ArrayImages(images, 8, 1)
    )
    assert found["samples_of_each_class"] == [0, 0, 4, 0]
    assert found["classes_among_samples"] == 1
    assert (found["rarest_class"]["value"], found["commonest_class"]["value"]) == (0.0, 1.0)
    assert found["surer_than_0.9"] == {"value": 1.0, "standard_error": 0.0, "num_images": 4}
    assert found["surer_than_0.9_held_out"]["num_images"] == 6


def test_a_run_without_classes(tiny_array: Path, tmp_path: Path) -> None:
    """Pixels are compared for any data; figures and picture are left, and the same again the second time."""
    config = tiny_config(data__dataset="npy", data__path=str(tiny_array))
    assert train(config, tmp_path) == 0
    figures, path = study(config, tmp_path, 0, delta=None, seed=None, num_gen=3)
    assert list(figures["spaces"]) == ["pixels"]
    assert "classifier" not in figures
    assert json.loads(path.with_suffix(".json").read_text()) == figures
    assert path.stat().st_size > 10_000
    assert study(config, tmp_path, 0, delta=None, seed=None, num_gen=3)[0]["spaces"] == figures["spaces"]
    assert "  copies: 0 +- 0 (N = 3)" in report(figures)


@pytest.mark.parametrize("module", ["memorization", "gallery"])
def test_bad_input_is_one_line(module: str, tmp_path: Path) -> None:
    """Nothing is written, and the message names the flag."""
    command = [
        sys.executable,
        "-m",
        f"scripts.{module}",
        "--config=configs/mnist/quickstart.py",
        f"--workdir={tmp_path / 'run'}",
    ]
    command += [f"--out={tmp_path / 'out'}"] if module == "gallery" else []
    for extra, expected in (
        ("--delta=nan", "--delta=nan: must be a finite number"),
        ("--delta=0.01", "there is no checkpoint in it"),
    ):
        done = subprocess.run([*command, extra], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2
        assert expected in done.stderr
        assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
