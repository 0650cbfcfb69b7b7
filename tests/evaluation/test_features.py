"""Features are kept and continued; the classifier is good enough to measure with, and the same
every time.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.data.datasets import load_labelled
from scripts.data.images import checksums
from scripts.evaluation.classifier import classifier_features
from scripts.evaluation.features import cached_features, image_features
from scripts.evaluation.references import folder_images
from tests.evaluation.evaluations import Recorder
from tests.tiny import tiny_config

CPU = torch.device("cpu")


class Counting:
    """Features of image i are (i, -i); which ranges were asked for."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.asked: list[tuple[int, int]] = []
        self.stop_at = stop_at

    def __call__(self, indices: range) -> np.ndarray:
        if self.stop_at is not None and indices.stop > self.stop_at:
            raise KeyboardInterrupt
        self.asked.append((indices.start, indices.stop))
        return np.array([[i, -i] for i in indices], np.float32)


EXPECTED = np.array([[i, -i] for i in range(30)], np.float32)


def test_an_interrupted_computation_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files come as the work continues; another batch size and more images continue from them."""
    monkeypatch.setattr("scripts.evaluation.features.SECONDS_BETWEEN_FILES", -1)
    first, second, third = Counting(stop_at=12), Counting(), Counting()
    with pytest.raises(KeyboardInterrupt):
        cached_features(tmp_path, "a", 20, 4, first, "")
    assert first.asked == [(0, 4), (4, 8), (8, 12)]
    np.testing.assert_array_equal(cached_features(tmp_path, "a", 20, 5, second, ""), EXPECTED[:20])
    assert second.asked == [(12, 17), (17, 20)]
    np.testing.assert_array_equal(cached_features(tmp_path, "a", 23, 5, third, ""), EXPECTED[:23])
    assert third.asked == [(20, 23)]


def test_finished_features_are_read(tmp_path: Path) -> None:
    cached_features(tmp_path, "a", 10, 4, Counting(), "")
    for key, expected in (("a", []), ("b", [(0, 4), (4, 6)])):
        compute = Counting()
        np.testing.assert_array_equal(
            cached_features(tmp_path, key, 6, 4, compute, ""), EXPECTED[:6]
        )
        assert compute.asked == expected


@pytest.mark.parametrize("size", [0, 50, 170])
def test_damaged_features_are_computed_again(
    size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a full disk: cut before its header's end, and within the numbers."""
    for count in (4, 10):  # files with rows 0 to 3 and 4 to 9
        cached_features(tmp_path, "a", count, 4, Counting(), "")
    file = tmp_path / "features_a_0000004.npy"
    file.write_bytes(file.read_bytes()[:size])
    for asked in ([(4, 8), (8, 10)], []):
        compute = Counting()
        found = cached_features(tmp_path, "a", 10, 4, compute, "")
        np.testing.assert_array_equal(found, EXPECTED[:10])
        assert compute.asked == asked
        assert ("0000004.npy: damaged" in capsys.readouterr().err) == bool(asked)


def test_folders_are_read_at_native_size_and_without_what_is_unreadable(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = [
        rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((5, 7, 3), (6, 6), (5, 7, 3))
    ]
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    (tmp_path / "1a.png").write_bytes(b"no image")
    images = folder_images(tmp_path)
    rows = image_features(images, range(4), Recorder())
    found = rows["features"]
    np.testing.assert_allclose(found[[0, 1, 3], 0], [image.mean() for image in pixels], rtol=1e-5)
    assert np.isnan(found[2]).all()
    assert rows["crc32"].tolist() == [
        *checksums([images[0], images[1]]),
        0,
        *checksums([images[3]]),
    ]


def test_labels_belong_to_their_images() -> None:
    data = tiny_config(data__image_size=28).data
    source, labels = load_labelled(data, "held_out")
    assert (len(source), labels.dtype) == (500, np.int64)
    np.testing.assert_array_equal(np.bincount(labels), [50] * 10)
    ink = {
        digit: np.mean([source[int(i)].mean() for i in np.flatnonzero(labels == digit)])
        for digit in (0, 1)
    }
    assert ink[0] > 1.5 * ink[1]


def test_the_included_classifier(tmp_path: Path) -> None:
    """The same weights on every machine, so that scores compare: nothing is trained, nothing
    written.
    """
    classifier = classifier_features(tmp_path, tiny_config(data__image_size=28).data, CPU)
    assert classifier.settings == {"extractor": "classifier", "weights_crc32": 1323292831}
    assert classifier.accuracy == pytest.approx(0.976, abs=0.003)
    assert not list(tmp_path.iterdir())


def test_a_classifier_of_other_data_is_accurate_reproducible_and_kept(tmp_path: Path) -> None:
    """Digits at another size; a tenth of the steps."""
    data = tiny_config(data__image_size=14).data
    generator = torch.get_rng_state()
    classifier = classifier_features(tmp_path / "a", data, CPU, steps=60)
    assert torch.equal(torch.get_rng_state(), generator)
    assert classifier.accuracy > 0.8
    (file,) = (tmp_path / "a").iterdir()
    written = file.stat().st_mtime_ns
    again = classifier_features(tmp_path / "a", data, CPU, steps=60)
    assert file.stat().st_mtime_ns == written
    assert (again.settings, again.accuracy) == (classifier.settings, classifier.accuracy)
    short = [
        classifier_features(tmp_path / name, data, CPU, steps=3).settings for name in ("b", "c")
    ]
    assert short[0] == short[1]
    pixels = torch.randint(0, 256, (2, 1, 14, 14), dtype=torch.uint8)
    assert again(pixels).shape == (2, 64)
