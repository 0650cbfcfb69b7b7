"""A packed data set is the same data set; half a pack is none; nothing else is replaced."""

import os
import re
import shutil
import threading
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from scripts.data import packs
from scripts.data.datasets import Split, load_images, load_whole
from scripts.data.images import ArrayImages, FolderImages, fingerprint
from scripts.data.loader import OrderedBatches, TrainBatches, num_threads
from scripts.data.packs import WHOLE, PackedImages, write_pack
from scripts.runtime import distributed
from scripts.storage.files import exclusive
from tests.conftest import bad_input
from tests.data.test_datasets import lsun, mnist_archives  # noqa: F401
from tests.data.test_loader import assert_same
from tests.images import data_config, names_of, random_pixels, save_images

pytestmark = pytest.mark.usefixtures("no_network")
SPLITS: tuple[Split, ...] = ("train", "held_out")


def pack(data: ConfigDict, directory: Path) -> ConfigDict:
    """Pack what `data` names. Returns `data` with the pack's path."""
    write_pack(directory, data, load_whole(data))
    return packed(data, directory)


def packed(data: ConfigDict, directory: Path) -> ConfigDict:
    data = ConfigDict(data.to_dict())
    data.path = str(directory)
    return data


def photographs(folder: Path, n: int = 40, size: int = 20) -> ConfigDict:
    """Grey images in two subfolders, one of them damaged, and one with a name that cannot be
    printed.
    """
    save_images(folder, [f"{'ab'[i % 2]}/{i}.png" for i in range(n)], size)
    (folder / "a" / "20.png").write_bytes(b"damaged")
    (folder / "a" / "22.png").rename(folder / "a" / os.fsdecode(b"\xff\x1b.png"))
    return data_config("folder", folder)


@pytest.fixture(params=["folder", "afhq", "npy", "mnist5k", "mnist", "lsun_church"])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> ConfigDict:
    """The data section of a configuration for each kind of data set."""
    name: str = request.param
    if name == "mnist5k":
        return data_config(name, channels=1)
    if name == "mnist":
        return data_config(name, request.getfixturevalue("mnist_archives"), channels=1)
    if name == "lsun_church":
        return data_config(name, request.getfixturevalue("lsun"))
    if name == "npy":
        images = random_pixels(30, 9, 9, 3)
        np.save(tmp_path / "images.npy", images)
        return data_config(name, tmp_path / "images.npy", size=6)
    if name == "folder":
        return photographs(tmp_path / "images")
    names = ["train/cat/a.png", "train/dog/b.png", "train/c.png", "val/cat/d.png", "val/e.png"]
    save_images(tmp_path / "images", names)
    return data_config(name, tmp_path / "images")


def test_the_same_data_set(data: ConfigDict, tmp_path: Path) -> None:
    """Names, pixels, what cannot be read, fingerprint, labels and batches of both splits."""
    there = pack(data, tmp_path / "pack")
    for split in SPLITS:
        one, other = load_images(data, split), load_images(there, split)
        assert isinstance(other, PackedImages)
        assert (fingerprint(other), other.shape) == (fingerprint(one), one.shape)
        assert names_of(other) == names_of(one)
        for of in (
            lambda source: list(OrderedBatches(source, 7, 0, True, mirrored=True)),
            lambda source: list(OrderedBatches(source, 5, 0, True, 11, seed=3)),
            lambda source: [TrainBatches(source, 5, 6, True, True)[step] for step in range(9)],
        ):
            assert_same(of(one), of(other))
        assert (one.labels is not None) == data.dataset.startswith("mnist")
        if one.labels is not None:
            assert other.labels is not None
            assert (other.labels.tolist(), other.labels.dtype) == (one.labels.tolist(), np.int64)


def test_memory_mapped_and_channels_last(tmp_path: Path) -> None:
    """So that it is also an array as any other."""
    data = pack(photographs(tmp_path / "images"), tmp_path / "pack")
    array = np.load(tmp_path / "pack" / "all.npy")
    assert (array.shape, array.dtype) == ((40, 8, 8, 3), np.uint8)
    source = load_images(data, "train")
    assert isinstance(source, ArrayImages)
    assert source.on_disk


class Killed(BaseException):
    """Nothing in the program catches this, as nothing survives kill -9."""


def killed_at(patch: pytest.MonkeyPatch, sync: int) -> None:
    """Die at the `sync`-th time that something has to reach the disk, when it is written and not
    yet recorded.
    """
    calls = iter(range(100))

    def fsync(descriptor: int) -> None:
        if next(calls) == sync:
            raise Killed

    patch.setattr(os, "fsync", fsync)


@pytest.fixture(scope="module")
def at_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`photographs` in images, packed in pack without interruption."""
    place = tmp_path_factory.mktemp("at-once")
    pack(photographs(place / "images"), place / "pack")
    return place


@pytest.mark.parametrize("sync", [*range(1, 7), 24, 25])
def test_killed_and_continued(
    sync: int, at_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is described, in the first blocks and at the end: half a pack is refused, and
    completed without reading again what is there.
    """
    monkeypatch.setattr(packs, "BLOCK", 5 * 8 * 8 * 3)  # 40 images are 8 blocks
    data = data_config("folder", at_once / "images")
    half = packed(data, tmp_path / "pack")
    with monkeypatch.context() as patch:
        killed_at(patch, sync)
        with pytest.raises(Killed):
            pack(data, tmp_path / "pack")
    for thread in threading.enumerate():  # which a dead process would not have
        if thread.name.startswith("reader"):
            thread.join()
    for split in SPLITS:
        with bad_input("half a pack: the command that began it completes it"):
            load_images(half, split)
    readable = tmp_path / "pack" / "all.readable.npy"
    there = len(np.load(readable)) if readable.exists() else 0
    assert there == (sync - 1) // 3 * 5, (
        "two calls for the description, then three a block, of which the last comes when it counts"
    )
    read: list[int] = []
    getitem = FolderImages.__getitem__

    def recording(source: FolderImages, i: int) -> np.ndarray:
        read.append(i)
        return getitem(source, i)

    monkeypatch.setattr(FolderImages, "__getitem__", recording)
    pack(data, tmp_path / "pack")
    assert sorted(read[40:]) == list(range(there, 40)), "the first 40 were for the fingerprint"
    for name in (WHOLE, "all.npy", "all.readable.npy"):
        assert (tmp_path / "pack" / name).read_bytes() == (at_once / "pack" / name).read_bytes()
    names = {path.name for path in (tmp_path / "pack").iterdir()}
    assert names == {WHOLE, "all.npy", "all.readable.npy", ".lock"}


def files(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def refused(directory: Path, data: ConfigDict, match: str) -> None:
    """Packing is refused in a line, and what is in the directory stays as it is."""
    before = files(directory)
    with bad_input(match) as caught:
        pack(data, directory)
    assert f"--out={directory}" in str(caught.value)
    assert files(directory) == before


def test_nothing_else_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole pack or half a one, of other images, names or sizes; other files. The same again
    changes nothing.
    """
    data = photographs(tmp_path / "images")
    pack(data, tmp_path / "pack")
    before = files(tmp_path / "pack")
    pack(data, tmp_path / "pack")
    assert files(tmp_path / "pack") == before
    monkeypatch.setattr(packs, "BLOCK", 1)
    with monkeypatch.context() as patch:
        killed_at(patch, 9)
        with pytest.raises(Killed):
            pack(data, tmp_path / "half")
    for directory in (tmp_path / "pack", tmp_path / "half"):
        refused(
            directory, data_config("folder", data.path, size=7), "a pack of other images or sizes"
        )
        refused(directory, data_config("ffhq", data.path), "a pack of other images or sizes")
    save_images(tmp_path / "images", ["b/3.png"])
    for directory in (tmp_path / "pack", tmp_path / "half"):
        refused(directory, data, "a pack of other images or sizes")
    refused(tmp_path / "images", data, "has other files in it")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", data, "cannot write there")


def test_a_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = photographs(tmp_path / "images")
    (tmp_path / "pack").mkdir()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("", (), {"free": 40 * 8 * 8 * 3 - 1}))
    refused(tmp_path / "pack", data, r"needs 0\.0 GB, 0\.0 GB are free")


def test_two_at_once(tmp_path: Path) -> None:
    data = photographs(tmp_path / "images")
    pack(data, tmp_path / "pack")
    with (
        exclusive(tmp_path / "pack", "taken"),
        ProcessPoolExecutor(1, get_context("fork")) as other,
    ):
        error = other.submit(pack, data, tmp_path / "pack").exception()
    assert "is being packed already" in str(error)


def test_images_that_change_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = photographs(tmp_path / "images")
    part, sources = packs._pack_part, load_whole(data)

    def change(*args: Any) -> None:
        save_images(tmp_path / "images", ["b/3.png"])
        part(*args)

    monkeypatch.setattr(packs, "_pack_part", change)
    with bad_input("changed while they were packed"):
        write_pack(tmp_path / "pack", data, sources)
    with bad_input("half a pack"):
        load_images(packed(data, tmp_path / "pack"), "train")


def test_packs_that_cannot_be_used(tmp_path: Path) -> None:
    """Each in a line that names key and value: of another size, of another kind, as the source of a
    pack, damaged.
    """
    data = pack(photographs(tmp_path / "images"), tmp_path / "pack")

    def refused_as(data: ConfigDict, message: str) -> None:
        path = re.escape(repr(data.path))
        with bad_input(rf"config\.data\.path = {path}: .*{message}"):
            load_images(data, "train")

    smaller = data_config("folder", data.path, size=7)
    refused_as(smaller, "a pack with data.image_size = 8, not 7")
    grey = data_config("folder", data.path, channels=1)
    refused_as(grey, "a pack with data.num_channels = 3, not 1")
    other = data_config("npy", data.path)
    refused_as(other, "a pack with data.dataset = 'folder', not 'npy'")
    with bad_input(r"config\.data\.path = .*: is a pack already"):
        pack(data, tmp_path / "again")
    pixels = tmp_path / "pack" / "all.npy"
    whole = pixels.read_bytes()
    pixels.write_bytes(whole[:-1])
    refused_as(data, "cannot be used")
    np.save(pixels, np.load(tmp_path / "pack" / "all.readable.npy")[:, None, None, None])
    refused_as(data, r"damaged: all\.npy holds bool \(40, 1, 1, 1\)")
    (tmp_path / "pack" / WHOLE).write_text("{")
    refused_as(data, "cannot be used")


def test_memory_does_not_hold_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2.5 MB of pixels neither packing nor reading has more than 1 MB in memory."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(2))
    monkeypatch.setattr(packs, "BLOCK", 16 * 32 * 32 * 3)
    data = photographs(tmp_path / "images", 800)
    data.image_size = 32
    sources = load_whole(data)
    load_images(data, "train")
    tracemalloc.start()
    write_pack(tmp_path / "pack", data, sources)
    packing = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    for _ in OrderedBatches(load_images(packed(data, tmp_path / "pack"), "train"), 4, 0, False):
        pass
    reading = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert packing < 1e6
    assert reading < 1e6


def test_how_many_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """-1: this process's share of the cores for files, one for what is on a disk, none for what is
    in memory.
    """
    data = photographs(tmp_path / "images")
    files, there = load_images(data, "train"), load_images(pack(data, tmp_path / "pack"), "train")
    array = load_images(data_config("mnist5k", channels=1), "train")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(12))
    assert [num_threads(-1, source) for source in (files, there, array)] == [12, 1, 0]
    assert [num_threads(5, source) for source in (files, there, array)] == [5, 5, 5]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert num_threads(-1, files) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "0")  # not known
    assert num_threads(-1, files) == 12
    monkeypatch.setattr(distributed, "CPU_MAX", tmp_path / "cpu.max")
    for quota, cores in (
        ("max 100000", 12),
        ("400000 100000", 4),
        ("150000 100000", 2),
        ("1000 100000", 1),
    ):
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
        assert num_threads(-1, files) == cores, "of a container"
