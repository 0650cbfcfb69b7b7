"""Splits of one's own: by subject, and held-out images that are kept apart."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

from scripts.config.load import to_json
from scripts.config.resolve import FREE, FREE_IN_INFERENCE, refuse_differences, resolve
from scripts.data.datasets import load_images, load_labelled, load_whole, split_indices
from scripts.data.packs import write_pack
from scripts.runtime.device import Precision
from scripts.training.loop import train
from scripts.training.plan import describe
from tests.conftest import bad_input
from tests.images import data_config, names_of, save_images
from tests.tiny import tiny_config

CPU = Precision.named(torch.device("cpu"), "float32")
PATTERN = r"(sub-\d+)/"


def both(data: ConfigDict) -> tuple[list[str], list[str]]:
    return names_of(load_images(data, "train")), names_of(load_images(data, "held_out"))


@pytest.fixture
def subjects(tmp_path: Path) -> ConfigDict:
    """Thirty subjects with 1 to 7 images each."""
    save_images(
        tmp_path / "images",
        [f"sub-{i:02}/scan-{j}.png" for i in range(30) for j in range(1 + i % 7)],
    )
    data = data_config("folder", tmp_path / "images", channels=1)
    data.group_pattern = PATTERN
    return data


def subject_of(name: str) -> str:
    return name.partition("/")[0]


def test_all_images_of_a_subject_are_on_one_side(subjects: ConfigDict, tmp_path: Path) -> None:
    train_names, held_out = both(subjects)
    assert not set(map(subject_of, train_names)) & set(map(subject_of, held_out))
    whole = names_of(load_whole(subjects)["all"])
    assert sorted(train_names + held_out) == whole
    tenth = len(whole) // 10
    assert tenth - 1 <= len(held_out) <= tenth + 1, (
        "as near to a tenth of the images as whole subjects come"
    )
    sides = load_images(subjects, "train"), load_images(subjects, "held_out")
    text = describe(resolve(tiny_config(data__group_pattern=PATTERN)), CPU, *sides, 0)
    groups = [len(set(map(subject_of, names))) for names in (train_names, held_out)]
    assert (
        f"{len(train_names)} training images, {len(held_out)} held out; {groups[0]} groups for tr"
        in text
    )
    assert f" for training, {groups[1]} held out" in text
    write_pack(tmp_path / "pack", subjects, load_whole(subjects))
    subjects.path = str(tmp_path / "pack")
    assert both(subjects) == (train_names, held_out)
    subjects.path, subjects.group_pattern = str(tmp_path / "images"), ""
    by_image = both(subjects)
    assert set(map(subject_of, by_image[0])) & set(map(subject_of, by_image[1]))
    subjects.group_pattern = "(.*)"
    assert both(subjects) == by_image, "each image for itself is the default"


@pytest.mark.parametrize(
    ("sizes", "held_out"),
    [
        ([1, 1], 1),
        ([99, 1], 1),
        ([1, 99], 1),
        ([50, 50], 50),
        ([3] * 5, 3),
        ([1] * 100, 10),
        ([7] * 10, 7),
        ([110] * 8 + [10], 120),
        ([900, *[5] * 20], 100),
        ([2000] + [10] * 1800, 1000),
    ],
)
@pytest.mark.parametrize("naming", range(6))
def test_a_large_group_is_held_out_only_if_there_is_nothing_else(
    sizes: list[int], held_out: int, naming: int
) -> None:
    """Whatever the groups are called.

    Before, one subject with 900 of 1,000 images was held out in 5 of 6 namings.
    """
    keys = [f"{naming}-{group}".encode() for group, size in enumerate(sizes) for _ in range(size)]
    train, held = ({*split_indices(keys, split).tolist()} for split in ("train", "held_out"))
    assert (len(held), train | held, train & held) == (held_out, set(range(len(keys))), set())
    assert not {keys[i] for i in train} & {keys[i] for i in held}


def test_held_out_images_of_their_own(tmp_path: Path) -> None:
    """Nothing is held out of the others; a data set with a split of its own keeps its training
    part.
    """
    save_images(tmp_path / "images", [f"{i}.png" for i in range(30)])
    save_images(tmp_path / "other", ["a.png", "b.png"])
    np.save(tmp_path / "array.npy", np.zeros((20, 8, 8), np.uint8))
    data = data_config("folder", tmp_path / "images", channels=1)
    for path, names in (
        (tmp_path / "other", ["a.png", "b.png"]),
        (tmp_path / "array.npy", [f"image {i}" for i in range(20)]),
    ):
        data.held_out_path = str(path)
        assert (len(both(data)[0]), both(data)[1]) == (30, names)
        write_pack(tmp_path / f"pack of {path.stem}", data, load_whole(data))
        packed = data_config("folder", tmp_path / f"pack of {path.stem}", channels=1)
        packed.held_out_path = str(path)
        assert both(packed) == both(data)
    alone = data_config("folder", tmp_path / "other", channels=1)
    write_pack(tmp_path / "pack", alone, load_whole(alone))
    data.held_out_path = str(tmp_path / "pack")
    assert both(data)[1] == ["a.png", "b.png"]
    data.image_size = 4
    with bad_input(r"data\.held_out_path=.*is a pack with data\.image_size = 8, not 4"):
        both(data)
    array = data_config("npy", tmp_path / "array.npy", channels=1)
    array.held_out_path = str(tmp_path / "other")
    assert len(both(array)[0]) == 20
    digits = data_config("mnist5k", size=28, channels=1)
    digits.held_out_path = str(tmp_path / "other")
    assert (len(both(digits)[0]), len(both(digits)[1])) == (4500, 2)
    assert {part: len(images) for part, images in load_whole(digits).items()} == {
        "train": 4500,
        "held_out": 500,
    }
    with bad_input(r"held_out_path = .*: has no labels"):
        load_labelled(digits, "held_out")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "group_pattern",
            r"(sub-0\d)/",
            "must match every file, but does not match sub-10/scan-0.png",
        ),
        (
            "group_pattern",
            "(sub)-",
            "must tell at least 2 subjects apart, but all files are of 'sub'",
        ),
        ("group_pattern", "(x)?sub", "must match every file, but does not match sub-00/scan-0.png"),
        ("held_out_path", "not/there", "not/there: cannot be used"),
        ("held_out_path", "{images}", "must be apart from config.data.path"),
        ("held_out_path", "{images}/sub-03", "must be apart from config.data.path"),
        ("held_out_path", "{images}/..", "must be apart from config.data.path"),
    ],
)
def test_bad_splits(key: str, value: str, message: str, subjects: ConfigDict) -> None:
    subjects.group_pattern = ""
    subjects[key] = value.format(images=subjects.path)
    with bad_input(rf"^config\.data\.{key} ?= ?.*{message}") as error:
        both(subjects)
    assert str(error.value).count("config.data.dataset") == 0


def test_settings_that_do_not_go_together() -> None:
    for pattern in ("(", "sub"):
        with bad_input(r"group_pattern = .*: must be a regular expression with a group"):
            resolve(tiny_config(data__group_pattern=pattern))
    with bad_input(r"group_pattern = .*: must be empty with config\.data\.held_out_path = 'x'"):
        resolve(tiny_config(data__group_pattern=PATTERN, data__held_out_path="x"))
    with bad_input(r"group_pattern = .*'mnist5k' is split otherwise; must be empty"):
        load_images(tiny_config(data__group_pattern=PATTERN).data, "train")


def test_a_checkpoint_knows_its_split(tmp_path: Path) -> None:
    """Other places are free, as data may move. Which images were held out is not."""
    saved, moved = (tiny_config(data__held_out_path=path) for path in ("a", "b"))
    for free in (FREE, FREE_IN_INFERENCE):
        refuse_differences(to_json(saved), moved, free, "it")
        for other in (tiny_config(), tiny_config(data__group_pattern=PATTERN)):
            with bad_input(r"config\.data\.held_out_path was 'a', now ''"):
                refuse_differences(to_json(saved), other, free, "it")
        with bad_input(r"config\.data\.group_pattern was '', now"):
            refuse_differences(
                to_json(tiny_config()), tiny_config(data__group_pattern=PATTERN), free, "it"
            )
    save_images(tmp_path / "other", ["a.png", "b.png"])
    config = tiny_config(data__held_out_path=str(tmp_path / "other"))
    assert train(config, tmp_path / "run") == 0
    save_images(tmp_path / "other", ["c.png"])
    with bad_input(
        r"on other held-out images than 'mnist5k' now has \(2 then, 3 now, names: 0 gone, "
        r"1 new, such as c.png\)",
    ):
        train(config, tmp_path / "run")
