"""Classes of images: from folders, tables and archives, and what is wrong with them."""

import json
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from scripts.data.datasets import load_images, load_whole
from scripts.data.images import fingerprint
from scripts.data.labels import MOST_CLASSES, classes_of, find_classes
from scripts.data.packs import write_pack
from tests.conftest import bad_input
from tests.images import data_config, save_images

FILES = [f"{name}/{i:02d}.png" for name in ("cat", "dog", "eel") for i in range(20)] + ["fox/1.png"]
NAMES = [file[:3] for file in FILES]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of 20 images, and one of one."""
    save_images(tmp_path / "images", FILES)
    return tmp_path / "images"


def labelled(path: Path, labels: str, dataset: str = "folder") -> ConfigDict:
    data = data_config(dataset, path, channels=1)
    data.labels = labels
    return data


def write_table(folder: Path, rows: list[tuple[str, object]]) -> str:
    lines = ["file,label", *(f'"{file}",{label}' for file, label in rows)]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return "labels.csv"


def test_the_same_labels_of_all_kinds_and_a_balanced_split(folder: Path) -> None:
    numbers = [("cat", "dog", "eel", "fox").index(name) for name in NAMES]
    write_table(folder, list(zip(FILES, NAMES, strict=True)))
    pairs = [list(pair) for pair in zip(FILES, numbers, strict=True)]
    (folder / "dataset.json").write_text(json.dumps({"labels": pairs}))
    pixels = np.zeros((len(FILES), 8, 8), np.uint8)
    np.savez(folder.parent / "images.npz", arr_0=pixels, kinds=NAMES, numbers=numbers)
    found = []
    for path, labels, dataset in [
        (folder, "folders", "folder"),
        (folder, "labels.csv", "folder"),
        (folder, str(folder / "dataset.json"), "folder"),
        (folder.parent / "images.npz", "kinds", "npy"),
        (folder.parent / "images.npz", "numbers", "npy"),
    ]:
        data = labelled(path, labels, dataset)
        for split, counts in (("train", [18, 18, 18, 1]), ("held_out", [2, 2, 2, 0])):
            source = load_images(data, split)  # type: ignore[arg-type]
            assert source.labels is not None
            assert np.bincount(source.labels, minlength=4).tolist() == counts
            names = [source.classes[label] for label in source.labels]
            if labels != "numbers" and dataset == "folder":
                expected = [source.name(i)[:3] for i in range(len(source))]
                assert names == expected or labels.endswith(".json")
        found.append(load_images(data, "train").classes)
    numbered = ("0", "1", "2", "3")
    named = ("cat", "dog", "eel", "fox")
    assert found == [named, named, numbered, named, numbered]


def test_a_pack_keeps_classes_and_split(folder: Path, tmp_path: Path) -> None:
    data = labelled(folder, "folders")
    write_pack(tmp_path / "pack", data, load_whole(data))
    packed = labelled(tmp_path / "pack", "folders")
    for split in ("train", "held_out"):
        one, other = (load_images(each, split) for each in (data, packed))
        assert one.classes == other.classes
        assert fingerprint(one) == fingerprint(other)
    with bad_input(r"is a pack with data\.labels = 'folders', not ''"):
        load_images(labelled(tmp_path / "pack", ""), "train")


def test_held_out_images_of_their_own_have_the_same_numbers(folder: Path, tmp_path: Path) -> None:
    save_images(tmp_path / "others", ["eel/1.png", "dog/1.png"])
    data = labelled(folder, "folders")
    data.held_out_path = str(tmp_path / "others")
    held_out = load_images(data, "held_out")
    assert held_out.labels is not None
    assert held_out.labels.tolist() == [1, 2]  # in the order of names, dog and eel
    save_images(tmp_path / "others", ["ant/1.png"])
    with bad_input("has class ant; must be of cat, dog, eel, fox"):
        load_images(data, "held_out")


def test_a_fingerprint_and_a_version_tell_labels_apart(folder: Path) -> None:
    prints, versions = set(), set()
    for names in (NAMES, NAMES[::-1], [name.upper() for name in NAMES]):
        write_table(folder, list(zip(FILES, names, strict=True)))
        source = load_images(labelled(folder, "labels.csv"), "train")
        prints.add(fingerprint(source)["labels_crc32"])
        versions.add(source.version())
    assert (len(prints), len(versions)) == (3, 3)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda rows: rows[:31], "30 of 61 files have no label, such as dog/11.png"),
        (lambda rows: [*rows, ("z.png", "cat")], "1 of 62 files have a label, but are not there"),
        (lambda rows: [*rows, (FILES[3], "dog")], "cat/03.png has the labels 'cat' and 'dog'"),
        (lambda rows: [*rows[:-1], (FILES[-1], "")], "fox/1.png has an empty label"),
        (lambda rows: [(file, "cat") for file, _ in rows], "classes apart, has 1, such as cat"),
        (lambda rows: [(FILES[0], "nan"), *rows[1:]], "has the label nan; must be names, or"),
        (lambda rows: [(FILES[0], -1), *rows[1:]], "has the label -1; must be names, or numbers"),
    ],
)
def test_what_is_wrong_with_a_table(change: object, line: str, folder: Path) -> None:
    rows = list(zip(FILES, NAMES, strict=True))
    data = labelled(folder, write_table(folder, change(rows)))  # type: ignore[operator]
    with bad_input() as caught:
        load_images(data, "train")
    assert str(caught.value).startswith("config.data.labels = 'labels.csv': ")
    assert line in str(caught.value)


def test_what_is_wrong_elsewhere(folder: Path, tmp_path: Path) -> None:
    (folder / "empty").mkdir()
    save_images(tmp_path / "mixed", ["a/1.png", "b/1.png", "1.png"])
    save_images(tmp_path / "single", [f"{i}/1.png" for i in range(5)])
    (folder / "dataset.json").write_text('{"labels": null}')
    np.savez(tmp_path / "few.npz", arr_0=np.zeros((9, 8, 8), np.uint8), labels=[0, 1])
    for path, labels, dataset, line in [
        (folder, "folders", "folder", "the sub-folder empty has no images"),
        (folder, "dataset.json", "folder", "cannot be read (labels must be"),
        (folder, "none.csv", "folder", "cannot be read"),
        (tmp_path / "mixed", "folders", "folder", "1.png is in no sub-folder; each is a class"),
        (tmp_path / "single", "folders", "folder", "every class has one image"),
        (tmp_path / "few.npz", "labels", "npy", "has 2 labels for 9 images"),
        (tmp_path / "few.npz", "classes", "npy", "cannot be read"),
        ("", "folders", "mnist5k", "config.data.labels = 'folders': must be empty for mnist5k"),
    ]:
        with bad_input() as caught:
            load_images(labelled(path, labels, dataset), "train")  # type: ignore[arg-type]
        assert line in str(caught.value)


def test_names_of_classes() -> None:
    assert classes_of(["10", "9", "9"], "")[0] == "9"
    with bad_input(r"2 to 10,000 classes apart, has 10,001, such as 0"):
        classes_of(map(str, range(MOST_CLASSES + 1)), "")
    names = ("airplane", "7", "a,b")
    for text, expected in [("7", (1,)), ("2", (2,)), ("a,b", (2,)), ("7,0", (1, 0))]:
        assert find_classes(text, names) == expected
    assert find_classes("all", names) == (0, 1, 2)
    with bad_input(r"--class=cat: there is no class 'cat'; there are airpl"):
        find_classes("cat", names)
