"""Corruptions are what they say, and the included robust classifiers order them as people would."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

from configs.emoji import quickstart as emoji
from configs.mnist import quickstart as digits
from scripts.config.flags import parse
from scripts.data.datasets import Split, load_images
from scripts.data.images import all_pixels
from scripts.evaluation.classifier import ClassifierFeatures, classifier_features
from scripts.evaluation.corruptions import CORRUPTIONS, blends, random_phases, shuffled_blocks
from scripts.evaluation.distances import Gaussian, frechet_estimate
from scripts.tools import planted
from tests.conftest import bad_input
from tests.images import random_images, save_images
from tests.tiny import tiny_config

CPU = torch.device("cpu")
IMAGES = random_images(6, 3, 9, 8)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_stay_images(name: str) -> None:
    """And the same ones for the same random numbers, with the input as it was."""
    images = IMAGES.clone()
    corrupted = CORRUPTIONS[name](images, rng())
    assert corrupted.shape == images.shape
    assert 0 <= corrupted.min() <= corrupted.max() <= 1
    assert torch.equal(images, IMAGES)
    assert torch.equal(corrupted, CORRUPTIONS[name](images, rng()))
    assert torch.equal(corrupted, images) == (name == "as they are")


@pytest.mark.parametrize("per_side", [2, 4])
def test_blocks_change_places(per_side: int) -> None:
    """No picture stays as it is; values are the same, those that no block covers in place."""
    shuffled = shuffled_blocks(IMAGES, per_side, rng())
    for before, after in zip(IMAGES, shuffled, strict=True):
        assert not torch.equal(before, after)
        assert torch.equal(before.flatten().sort().values, after.flatten().sort().values)
    assert torch.equal(shuffled[:, :, 8], IMAGES[:, :, 8])


def test_blends_are_of_two_pictures() -> None:
    blended = blends(IMAGES, rng())
    for i, picture in enumerate(blended):
        others = [(IMAGES[i] + IMAGES[j]) / 2 for j in range(6) if j != i]
        assert any(torch.equal(picture, other) for other in others)


def test_random_phases_keep_the_power_spectrum() -> None:
    """Where nothing is clipped."""
    images = 0.5 + 0.02 * (IMAGES - 0.5)
    power = torch.fft.fft2(random_phases(images, rng())).abs()
    torch.testing.assert_close(power, torch.fft.fft2(images).abs(), rtol=1e-3, atol=1e-4)


def pixels(data: ConfigDict, split: Split) -> torch.Tensor:
    return torch.from_numpy(all_pixels(load_images(data, split)))


def distances(config: ConfigDict, features: ClassifierFeatures) -> dict[str, float]:
    """Of each corruption of the held-out pictures."""
    reference = Gaussian.of(features(pixels(config.data, "train")))
    assert np.trace(reference.sigma) == pytest.approx(100, rel=0.01)
    held_out = pixels(config.data, "held_out").float() / 255
    values = {}
    for name, corruption in CORRUPTIONS.items():
        corrupted = (corruption(held_out, rng()) * 255).round().to(torch.uint8)
        values[name] = frechet_estimate(features(corrupted), reference)[0].value
    return values


@pytest.mark.parametrize("module", [digits, emoji], ids=["digits", "emoji"])
def test_the_included_robust_classifiers_see_what_people_see(
    module: object, tmp_path: Path
) -> None:
    """Little noise and blur count less than more of either, that less than blends, those less than
    pictures in pieces; the plain classifier takes a slight blur for worse than shuffled quarters
    of digits.
    """
    config = module.get_config()  # type: ignore[attr-defined]
    value = distances(config, classifier_features(tmp_path, config.data, CPU, "robust_classifier"))
    assert not list(tmp_path.iterdir())  # nothing was trained
    assert value["as they are"] < 8
    little = max(value["noise of 10 grey levels"], value["blur of 0.6 pixels"])
    more = value["blur of 1.2 pixels"]
    assert 2 * little < more > value["noise of 25 grey levels"]
    assert 1.5 * more < value["blends of two"]
    assert 1.3 * value["blends of two"] < value["quarters shuffled"]
    for worst in ("sixteen blocks shuffled", "random phases"):
        assert 1.2 * value["quarters shuffled"] < value[worst]


def test_a_robust_classifier_of_other_data(tmp_path: Path) -> None:
    """Trained once; it is not taken for the plain one."""
    data = tiny_config(data__image_size=14).data
    made = [
        classifier_features(tmp_path, data, CPU, kind, steps=3)
        for kind in ("robust_classifier", "classifier", "robust_classifier")
    ]
    assert made[0].settings == made[2].settings != made[1].settings
    assert len(list(tmp_path.iterdir())) == 2


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each case, in its order, and a picture."""
    arguments = ["planted", f"--config={digits.__file__}", "--feature_extractor=classifier"]
    assert planted.main(parse("planted", [*arguments, f"--out={tmp_path}"])) == 0
    printed = capsys.readouterr().out.splitlines()[1:]
    for line, name in zip(printed, CORRUPTIONS, strict=True):
        assert line.startswith(name)
        assert " +- " in line
    assert (tmp_path / "planted_classifier.png").exists()


def test_no_table_among_the_images(tmp_path: Path) -> None:
    """Its picture would become one of them."""
    save_images(tmp_path, [f"{i}.png" for i in range(4)], size=8)
    data = ["--config.data.dataset=folder", f"--config.data.path={tmp_path}"]
    words = ["planted", f"--config={digits.__file__}", *data, f"--out={tmp_path / 'table'}"]
    with bad_input(r"would become images of config\.data\.path"):
        planted.main(parse("planted", words))
    assert not (tmp_path / "table").exists()
