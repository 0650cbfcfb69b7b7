"""Which images each data set has."""

import gzip
import hashlib
import io
import mmap
import pickle
import struct
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from PIL import Image
from torchvision.datasets import CIFAR10, MNIST

from scripts.data import datasets
from scripts.data.datasets import load_images, require_outside_data, split_indices
from scripts.data.images import ArrayImages, ImageSource, UnreadableImage
from scripts.data.loader import OrderedBatches
from tests.conftest import bad_input
from tests.images import data_config, names_of, random_pixels, save_images


def both(data: ConfigDict) -> tuple[ImageSource, ImageSource]:
    return load_images(data, "train"), load_images(data, "held_out")


@pytest.mark.parametrize(
    ("name", "shape", "sizes"),
    [("mnist5k", (1, 28, 28), (4500, 500)), ("emoji32", (3, 32, 32), (2946, 326))],
)
def test_what_comes_with_the_program(
    name: str, shape: tuple[int, ...], sizes: tuple[int, int]
) -> None:
    """A tenth is held out, of the digits 50 of each class."""
    train, held_out = both(data_config(name, size=shape[1], channels=shape[0]))
    assert (len(train), len(held_out)) == sizes
    assert not set(names_of(train)) & set(names_of(held_out))
    with np.load(datasets.DATA / f"{name}.npz") as file:
        labels, images = file["labels"], file["images"]
    rows = [int(name.split()[1]) for name in names_of(held_out)]
    assert held_out.labels is not None
    assert held_out.labels.tolist() == labels[rows].tolist()
    if name == "mnist5k":
        assert np.bincount(labels[rows]).tolist() == [50] * 10
    pixels = images[rows[7]].reshape(shape[1], shape[2], -1).transpose(2, 0, 1)
    np.testing.assert_array_equal(held_out[7], pixels)


def test_emoji_come_with_their_licences_and_are_small() -> None:
    assert (datasets.DATA / "emoji32.npz").stat().st_size < 4e6
    licences = (datasets.DATA / "emoji32.LICENSE").read_text()
    assert "Apache License" in licences
    assert "Copyright 2019 Twitter, Inc and other contributors" in licences
    assert "https://creativecommons.org/licenses/by/4.0/" in licences


def test_both_pictures_of_an_emoji_are_on_one_side_with_one_category() -> None:
    with np.load(datasets.DATA / "emoji32.npz") as file:
        rows = zip(file["names"], file["vendors"], file["held_out"], file["labels"], strict=True)
        of_name: dict[str, dict[str, tuple[bool, int]]] = {}
        for name, vendor, held_out, label in rows:
            of_name.setdefault(name, {})[vendor] = (held_out, label)
    assert all(set(pictures) == {"google", "twitter"} for pictures in of_name.values())
    assert all(len(set(pictures.values())) == 1 for pictures in of_name.values())


pytestmark = pytest.mark.usefixtures("no_network")


def idx_file(array: np.ndarray) -> bytes:
    """MNIST's own format."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def mnist_files() -> dict[str, bytes]:
    """Three training images filled with 0, 1, 2, and two test images filled with 0, 1."""
    files = {}
    for prefix, n in (("train", 3), ("t10k", 2)):
        images = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None], (n, 28, 28))
        files[f"{prefix}-images-idx3-ubyte"] = idx_file(images)
        files[f"{prefix}-labels-idx1-ubyte"] = idx_file(np.zeros(n, np.uint8))
    return files


@pytest.fixture
def mnist_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with tiny MNIST archives as a person might have put them there, which torchvision
    takes for the real ones.
    """
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    resources = []
    for name, contents in mnist_files().items():
        archive = gzip.compress(contents)
        (raw / f"{name}.gz").write_bytes(archive)
        resources.append((f"{name}.gz", hashlib.md5(archive).hexdigest()))
    monkeypatch.setattr(MNIST, "resources", resources)
    return tmp_path


def test_an_interrupted_download_continues(mnist_archives: Path) -> None:
    """Archives with the right checksum are used, whoever put them there; a half-written one is
    downloaded again.
    """
    data = data_config("mnist", mnist_archives, size=28, channels=1)
    archive = mnist_archives / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz"
    complete = archive.read_bytes()
    archive.write_bytes(complete[:-1])
    with bad_input("no network in tests"):
        load_images(data, "train")
    archive.write_bytes(complete)
    train, held_out = load_images(data, "train"), load_images(data, "held_out")
    assert [int(train[i].max()) for i in range(len(train))] == [0, 1, 2]
    assert len(held_out) == 2


def test_processes_that_start_together_do_not_disturb_each_others_download(
    mnist_archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only one unpacks at a time, and the others find its files."""
    download = MNIST.download

    def slow_download(self: MNIST) -> None:
        (tmp_path / "active").touch(exist_ok=False)  # raises if another one is at work
        time.sleep(0.2)
        download(self)
        (tmp_path / "active").unlink()

    monkeypatch.setattr(MNIST, "download", slow_download)
    data = data_config("mnist", mnist_archives, size=28, channels=1)
    with ProcessPoolExecutor(2, get_context("fork")) as pool:
        loading = [pool.submit(load_images, data, "train") for _ in range(2)]
        assert [len(found.result()) for found in loading] == [3, 3]


def test_damaged_mnist_is_not_taken_for_complete(mnist_archives: Path) -> None:
    """All four files are there, which is all that torchvision asks, but unpacking one was
    interrupted.
    """
    for name, contents in mnist_files().items():
        (mnist_archives / "MNIST" / "raw" / name).write_bytes(
            contents[:-1] if "train-images" in name else contents
        )
    with bad_input("cannot be used"):
        load_images(data_config("mnist", mnist_archives, size=28, channels=1), "train")


def test_cifar10_is_read_in_rgb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    checksums = {}
    red_green_blue = np.array([[10, 20, 30]] * 3, np.uint8).repeat(
        1024, axis=1
    )  # each row a plane after the other
    for name, n in (("data_batch_1", 3), ("test_batch", 2), ("batches.meta", 0)):
        contents = pickle.dumps(
            {"data": red_green_blue[:n], "labels": list(range(n)), "label_names": ["a"]}
        )
        (folder / name).write_bytes(contents)
        checksums[name] = hashlib.md5(contents).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", checksums["data_batch_1"]]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", checksums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": checksums["batches.meta"]})
    sources = both(data_config("CIFAR10", tmp_path, size=32))
    assert [len(source) for source in sources] == [3, 2]
    assert sources[0].labels is not None
    assert sources[0].labels.tolist() == [0, 1, 2]
    for source in sources:
        assert source[1][:, 5, 5].tolist() == [10, 20, 30]


@pytest.fixture
def lsun(tmp_path: Path) -> Path:
    """LSUN with 5 training images, filled with 0, 10, ..., the last one damaged, and 1 + 1 in the
    other split.
    """
    for split, n in (("train", 5), ("val", 2)):
        env = lmdb.open(str(tmp_path / f"church_outdoor_{split}_lmdb"), map_size=1 << 20)
        with env.begin(write=True) as transaction:
            for i in range(n):
                buffer = io.BytesIO()
                Image.new("RGB", (16, 12), (10 * i, 0, 0)).save(buffer, "PNG")
                transaction.put(f"key{i}".encode(), buffer.getvalue()[: 20 if i == 4 else None])
        env.close()
    return tmp_path


@pytest.mark.parametrize("num_workers", [0, 2])
def test_lsun_is_read_by_several_sources_and_threads(lsun: Path, num_workers: int) -> None:
    data = data_config("lsun_church", lsun)
    # LMDB itself refuses to open a file twice.
    sources = [load_images(data, "train"), load_images(data, "train")]
    assert (len(sources[0]), len(load_images(data, "held_out"))) == (5, 2)
    for source in sources:
        batches = list(OrderedBatches(source, 2, num_workers, False))
        red = torch.cat([batch.images for batch in batches])[:, 0, 0, 0]
        assert red.mul(255).round().tolist() == [0, 10, 20, 30]
        assert batches[-1].unreadable[0].startswith("key4: ")


def test_damage_in_a_database_is_an_unreadable_image_or_an_error_of_one_line(lsun: Path) -> None:
    """Not a traceback, nor, where a copy was interrupted, a process that dies on reading beyond the
    file's end.
    """
    data, file = data_config("lsun_church", lsun), lsun / "church_outdoor_train_lmdb" / "data.mdb"
    source = load_images(data, "train")
    with file.open("r+b") as pages:
        pages.seek(2 * mmap.PAGESIZE)  # the first two pages describe the others
        pages.write(bytes(file.stat().st_size - 2 * mmap.PAGESIZE))
    with pytest.raises(UnreadableImage, match=r"key0: .*MDB_CORRUPTED"):
        source[0]
    with file.open("r+b") as pages:
        pages.truncate(2 * mmap.PAGESIZE)
    with bad_input("incomplete: it should have at least"):
        load_images(data, "train")


def test_lsun_neither_reads_nor_writes_pickles(lsun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's reader unpickles a file in the working directory named after the database."""
    monkeypatch.chdir(lsun)
    before = sorted(path.name for path in lsun.rglob("*"))

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("unpickled")

    monkeypatch.setattr(pickle, "load", refuse)
    folder = str(lsun / "church_outdoor_train_lmdb")
    planted = Path("_cache_" + "".join(c for c in folder if c.isascii() and c.isalpha()))
    planted.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    load_images(data_config("lsun_church", lsun), "train")[0]
    planted.unlink()
    assert sorted(path.name for path in lsun.rglob("*")) == before


def test_afhq_takes_its_own_split_from_class_folders(tmp_path: Path) -> None:
    names = ["train/cat/a.png", "train/dog/b.png", "train/wild/c.png", "val/cat/d.png", "val/e.png"]
    save_images(tmp_path, names)
    train, held_out = both(data_config("afhq", tmp_path))
    assert names_of(train) == ["cat/a.png", "dog/b.png", "wild/c.png"]
    assert names_of(held_out) == ["cat/d.png", "e.png"]


def test_folder_finds_images_of_any_suffix_in_subfolders_and_leaves_out_the_rest(
    tmp_path: Path,
) -> None:
    wanted = ["a.PNG", "b.JPeG", "d.tiff", "deep/er/c.webp"]
    save_images(tmp_path, [*wanted, "notes.txt", "._a.png", ".trash/e.png", "png"])
    train, held_out = both(data_config("folder", tmp_path))
    assert sorted(names_of(train) + names_of(held_out)) == wanted


def test_split_of_a_folder_depends_on_names_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on the order in which the file system lists them, nor on where the folder is."""
    names = [f"{chr(97 + i % 3)}/{i}.png" for i in range(40)]
    save_images(tmp_path / "one", names)
    save_images(tmp_path / "two", names[::-1])
    expected = [names_of(part) for part in both(data_config("folder", tmp_path / "one"))]
    iterdir = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda folder: reversed(list(iterdir(folder))))
    assert [names_of(part) for part in both(data_config("folder", tmp_path / "two"))] == expected
    assert expected[0] == sorted(expected[0])


def test_the_split_never_changes() -> None:
    """Another split would move training images into the held-out set of runs that continue."""
    keys = [f"{i}.png".encode() for i in range(30)]
    assert split_indices(keys, "held_out").tolist() == [19, 22, 25]


@pytest.mark.parametrize("shape", [(20, 8, 8), (20, 8, 8, 1), (20, 8, 8, 3), (20, 10, 9, 3)])
def test_npy_is_memory_mapped_and_split(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = random_pixels(*shape)
    np.save(tmp_path / "a.npy", array)
    train, held_out = both(data_config("npy", tmp_path / "a.npy"))
    assert (len(train), len(held_out)) == (18, 2)
    assert len({*names_of(train), *names_of(held_out)}) == 20
    assert isinstance(train, ArrayImages)
    assert train.on_disk
    assert held_out[1].shape == (3, 8, 8)
    if shape == (20, 8, 8, 3):
        row = int(held_out.name(1).split()[1])
        np.testing.assert_array_equal(held_out[1], array[row].transpose(2, 0, 1))


PLACES = [
    ("images", "folder", "config.data.path"),
    ("images/run", "folder", "config.data.path"),
    ("images/../images/a/b", "FFHQ", "config.data.path"),
    ("link/run", "afhq", "config.data.path"),
    ("others/run", "mnist5k", "config.data.held_out_path"),
    ("given/run", "npy", "--init"),
]


def test_pictures_never_become_data(tmp_path: Path) -> None:
    """Wherever links lead; data sets that are not folders may have anything beside them."""
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "images")

    def require(place: str, dataset: str) -> None:
        data = data_config(dataset, tmp_path / "images")
        data.held_out_path = str(tmp_path / "others")
        require_outside_data(tmp_path / place, "--out", data, init=f"{tmp_path}/given")

    for place, dataset, key in PLACES:
        line = rf"--out=.*: pictures there would become images of {key} = "
        with bad_input(line):
            require(place, dataset)
    for place, dataset in (("images/run", "npy"), ("images2", "folder"), (".", "folder")):
        require(place, dataset)
