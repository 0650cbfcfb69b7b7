"""Numbers know their images: caches notice every one, records name them, and other images than the
run's are said.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from PIL import Image

from scripts.data.datasets import load_images, load_whole
from scripts.data.images import (
    ArrayImages,
    FolderImages,
    ImageSource,
    checksum,
    checksums,
    list_images,
)
from scripts.data.packs import PackedImages, read_pack, write_pack
from scripts.estimate import Estimate
from scripts.evaluation.references import folder_images
from scripts.evaluation.results import OWNER, Point, Result, append_results, results_directory
from scripts.storage.checkpoint import load_trained
from scripts.storage.record import Record
from tests.evaluation.evaluations import of_bound, of_samples
from tests.evaluation.made_run import make_run
from tests.tiny import tiny_config

COUNT = 130
UNSEEN = 5
"""An image that a fingerprint of 64 images spread evenly does not look at."""


def noise(folder: Path, seed: int, indices: range = range(COUNT)) -> Path:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in indices:
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{i:03d}.png")
    return folder


def folder_config(folder: Path, **overrides: object) -> ConfigDict:
    return tiny_config(data__dataset="folder", data__path=str(folder), **overrides)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run on a folder of noise."""
    make_run(folder_config(noise(tmp_path / "images", 0)), tmp_path / "run")
    return tmp_path / "run"


def opened_folder(path: Path) -> ImageSource:
    return FolderImages(path, list_images(path), (1, 8, 8))


def opened_array(path: Path) -> ArrayImages:
    return ArrayImages(
        np.stack([np.asarray(Image.open(path / name)) for name in list_images(path)])
    )


def opened_memory_map(path: Path) -> ArrayImages:
    """Written anew where the images have changed."""
    file, array = path.with_suffix(".npy"), opened_array(path)
    pixels = np.stack([array[i][0] for i in range(len(array))])
    if not file.exists() or not np.array_equal(np.load(file), pixels):
        np.save(file, pixels)
    return ArrayImages(np.load(file, mmap_mode="r"))


def opened_pack(path: Path) -> ImageSource:
    """Packed anew where the images have changed."""
    config, version = folder_config(path), opened_folder(path).version()
    place = path.with_name(f"pack_{version}")
    write_pack(place, config.data, load_whole(config.data))
    parts = read_pack(place, {})
    assert parts is not None
    return PackedImages(place, "all", parts["all"])


@pytest.mark.parametrize(
    "opened", [opened_folder, folder_images, opened_array, opened_memory_map, opened_pack]
)
def test_a_version_is_of_all_images(opened: Callable[[Path], Any], tmp_path: Path) -> None:
    folder = noise(tmp_path / "images", 0)
    before = opened(folder).version()
    assert opened(folder).version() == before
    noise(folder, 1, range(UNSEEN, UNSEEN + 1))
    assert opened(folder).version() != before


def test_caches_and_finished_points_notice_every_image(run: Path, tmp_path: Path) -> None:
    """Of a reference folder, of the data set, of given initial images; the same images are not
    computed again.
    """
    config, others = folder_config(tmp_path / "images"), noise(tmp_path / "others", 2)
    evaluations: dict[str, tuple[Any, Point]] = {
        "reference": (of_samples(run, config, reference=str(others)), Point(seed=1)),
        "initial images": (
            of_samples(run, config, reference=str(tmp_path / "images")),
            Point(init=str(others), seed=1),
        ),
        "data set": (of_bound(run, folder_config(others), split="train"), Point(0.0125, seed=1)),
        "training images": (
            of_samples(run, folder_config(others), "spectrum"),
            Point(seed=1),
        ),
    }
    keys = {name: evaluation.record(point).key for name, (evaluation, point) in evaluations.items()}
    (before,) = evaluations["reference"][0](Point(seed=1))
    for name, (evaluation, point) in evaluations.items():
        again = replace(evaluation)
        assert again.record(point).key == keys[name], name
    noise(others, 3, range(UNSEEN, UNSEEN + 1))
    for name, (evaluation, point) in evaluations.items():
        again = replace(evaluation)
        assert again.record(point).key != keys[name], name
    (after,) = replace(evaluations["reference"][0])(Point(seed=1))
    assert after.estimate.value != before.estimate.value
    assert after.settings["reference_crc32"] != before.settings["reference_crc32"]
    assert after.settings["samples_crc32"] == before.settings["samples_crc32"]


def of_images(source: ImageSource) -> int:
    return checksum(checksums(source[i] for i in range(len(source))))


def test_records_have_checksums_of_what_was_scored(run: Path, tmp_path: Path) -> None:
    """The same images have the same number in every kind of score; files and machines do not
    matter.
    """
    data = folder_config(tmp_path / "images").data
    held_out, training = (of_images(load_images(data, split)) for split in ("held_out", "train"))

    def row(evaluation: Any) -> dict[str, Any]:
        return evaluation(Point(0.0125, seed=1))[0].settings

    config = folder_config(tmp_path / "images")
    rows = [
        row(of_bound(run, config, num_images=0)),
        row(of_samples(run, config)),
        row(of_samples(run, config, dataset_split="test")),
        row(of_samples(run, config, "copying")),
        row(of_samples(run, config, "spectrum")),
    ]
    assert (
        rows[0]["images_crc32"]
        == rows[2]["reference_crc32"]
        == rows[3]["held_out_crc32"]
        == held_out
    )
    assert (
        rows[1]["reference_crc32"] == rows[3]["train_crc32"] == rows[4]["train_crc32"] == training
    )
    assert len({row["samples_crc32"] for row in rows[1:]}) == 1
    assert all({"kernel_crc32", "precision", "key"} <= row.keys() for row in rows)
    assert not any("files" in row or "other_images" in row for row in rows)
    for path in (tmp_path / "images").iterdir():
        path.touch()  # as in a copy on another machine
    assert row(of_bound(run, config, num_images=0))["key"] == rows[0]["key"]


def test_other_images_than_the_runs_are_said(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = folder_config(noise(tmp_path / "others", 4, range(100)))
    (result, _) = of_bound(run, others)(Point(0.0125, seed=1))
    assert result.settings["other_images"] == ["held_out"]
    line = (
        "the held_out images of 'folder' are not those of the checkpoint's run: "
        "10 images, 13 then, other names, other pixels"
    )
    assert capsys.readouterr().err.count(line) == 1
    (result,) = of_samples(run, others)(Point(init="train", seed=1))
    assert result.settings["other_images"] == ["held_out", "train"]
    (result,) = of_samples(run, others, reference=str(tmp_path / "images"))(Point(seed=1))
    assert "other_images" not in result.settings, "only the run's own reference and samples count"
    assert load_trained(others, run, 0).data["num_images"] == 117


def test_key_is_of_every_part_and_of_nothing_else() -> None:
    record = Record({"weights_crc32": 1}, {"delta": "0.1"}, {"init": "a"}, files={"init": "x"})
    changed = [
        replace(record, precision="bfloat16"),
        replace(record, version=record.version + 1),
        *(
            record.add(**{part: {"new": 1}})
            for part in ("weights", "kernel", "data", "reference", "metric", "options", "files")
        ),
    ]
    assert len({record.key, *(other.key for other in changed)}) == 1 + len(changed)
    assert replace(record, files={"init": "y"}).row() == record.row()
    assert Record(kernel={"chain": (1, 0)}).key == Record(kernel={"chain": [1, 0]}).key


def test_two_runs_of_one_name_have_their_own_results(tmp_path: Path) -> None:
    first, second = (tmp_path / name / "run" for name in "ab")
    place = results_directory(tmp_path, "mnist", "run", first)
    place.mkdir(parents=True)
    (place / OWNER).write_text(str(first.resolve()))
    assert results_directory(tmp_path, "mnist", "run", first) == place
    assert results_directory(tmp_path, "mnist", "run") == place, (
        "a name that was given may be shared"
    )
    other = results_directory(tmp_path, "mnist", "run", second)
    assert other.parent == place.parent
    assert other != place


def test_a_row_after_half_a_row_is_whole(tmp_path: Path) -> None:
    """A program that was killed while it wrote leaves half a line; the next row has its own."""
    estimate = Estimate.of(torch.arange(3.0))
    append_results(tmp_path, [Result("FID", estimate, {})], param_name="delta", seconds=1.0)
    file = next(tmp_path.glob("*.jsonl"))
    with file.open("a") as records:
        records.write('{"score": "FID", "val')
    append_results(tmp_path, [Result("KID", estimate, {})], param_name="delta", seconds=1.0)
    first, half, last = file.read_text().splitlines()
    assert [json.loads(line)["score"] for line in (first, last)] == ["FID", "KID"]
    assert half.endswith("val")
