"""A data set that is missing, damaged or too small: one line, with what is expected."""

import io
import pickle
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from ml_collections import ConfigDict

from scripts.data import datasets
from scripts.data.datasets import load_images
from tests.conftest import bad_input
from tests.images import data_config, save_images


def check_message(data: ConfigDict, *parts: str, split: datasets.Split = "train") -> None:
    with bad_input() as caught:
        load_images(data, split)
    message = str(caught.value)
    for part in ("config.data.dataset", repr(data.dataset), data.path, *parts):
        assert part in message
    assert "\n" not in message


def test_which_data_sets_there_are_and_which_need_a_path() -> None:
    check_message(
        data_config("celeba"),
        "mnist5k, emoji32, mnist, cifar10, lsun_church, ffhq, afhq, folder, npy",
    )
    for name in ("folder", "npy"):
        check_message(data_config(name), "config.data.path is empty")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("ffhq", ("no folder", "ffhq-dataset/images1024x1024", "NVlabs/ffhq-dataset")),
        ("afhq", ("no folder", "afhq/val", "stargan-v2")),
        ("lsun_church", ("no folder", "lsun/church_outdoor_val_lmdb", "github.com/fyu/lsun")),
        ("mnist", ("no network in tests", "MNIST/raw", "https://")),
        ("cifar10", ("no network in tests", "cifar-10-python.tar.gz", "https://")),
    ],
)
@pytest.mark.usefixtures("no_network")
def test_missing_data_set_says_where_to_get_it_and_where_it_goes(
    name: str, parts: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "DATA", tmp_path)
    check_message(data_config(name), str(tmp_path))
    check_message(data_config(name), *parts, split="held_out")


@pytest.mark.parametrize("name", sorted(datasets.DATA_SETS))
def test_missing_path_is_named(name: str, tmp_path: Path) -> None:
    check_message(data_config(name, tmp_path / "nowhere"), "config.data.path")


def test_unlistable_subfolder_is_an_error_not_a_smaller_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_images(tmp_path, ["a.png", "b.png", "locked/c.png"])
    iterdir = Path.iterdir

    def refuse(path: Path) -> Any:
        if path.name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    check_message(data_config("folder", tmp_path), "Permission denied", "locked")


def test_damaged_and_empty_lsun(tmp_path: Path) -> None:
    folder = tmp_path / "church_outdoor_train_lmdb"
    folder.mkdir()
    (folder / "data.mdb").write_bytes(b"not a database" * 1000)
    check_message(data_config("lsun_church", tmp_path), "not an LMDB")
    lmdb.open(str(tmp_path / "church_outdoor_val_lmdb")).close()
    check_message(data_config("lsun_church", tmp_path), "has no images", split="held_out")


def as_npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def as_npz(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, images=array)
    return buffer.getvalue()


ARRAY = "(N, H, W) or (N, H, W, C)"
DIGITS = (datasets.DATA / "mnist5k.npz").read_bytes()


@pytest.mark.parametrize(
    ("name", "file", "contents", "parts"),
    [
        ("npy", "x", as_npy(np.zeros((4, 8, 8), complex)), ("complex128 (4, 8, 8)", ARRAY)),
        ("npy", "x", as_npy(np.zeros((8, 8), np.uint8)), ("uint8 (8, 8)",)),
        ("npy", "x", as_npy(np.zeros((4, 3, 8, 8), np.uint8)), ("uint8 (4, 3, 8, 8)",)),
        ("npy", "x", as_npy(np.zeros((4, 8, 8, 4), np.uint8)), ("uint8 (4, 8, 8, 4)",)),
        ("npy", "x", as_npy(np.zeros((1, 8, 8), np.uint8)), ("uint8 (1, 8, 8)",)),
        ("npy", "x", as_npy(np.array([{}, {}], object)), ("cannot be used (", "expected: ")),
        ("npy", "x", b"", ("cannot be used (",)),
        ("npy", "x", pickle.dumps([1, 2]), ("cannot be used (",)),
        ("npy", "x", b"\x93NUMPY\x01\x00truncated", ("cannot be used (",)),
        ("npy", "x.npz", as_npz(np.zeros((4, 8, 8), np.uint8)), ("an archive of arrays (.npz)",)),
        ("npy", "", b"", ("Is a directory",)),
        ("mnist5k", "x", DIGITS[:1000], ("cannot be used (", "expected: ")),
        ("folder", "", b"", ("has no image files",)),
        ("folder", "x.png/..", b"", ("has 1 image files, where at least 2 are needed",)),
    ],
)
def test_unsuitable_and_damaged_files(
    name: str, file: str, contents: bytes, parts: tuple[str, ...], tmp_path: Path
) -> None:
    if file.startswith("x"):
        (tmp_path / file.removesuffix("/..")).write_bytes(contents)
    path = tmp_path if file.endswith("/..") else tmp_path / file
    check_message(data_config(name, path), *parts)
