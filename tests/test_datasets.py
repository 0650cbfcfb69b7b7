"""Which images a data set has, how they are decoded, and what batches they make."""

import gzip
import hashlib
import io
import math
import os
import pickle
import struct
import warnings
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.error import URLError

import lmdb
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from PIL import Image
from torch.utils.data._utils.pin_memory import pin_memory
from torchvision.datasets import CIFAR10, MNIST

from configs.default import get_config
from scripts import datasets, image_sources
from scripts.datasets import Batch, HeldOutBatches, TrainBatches, clean_batches, load_images, split_indices, train_loader
from scripts.errors import UserError
from scripts.image_sources import ArrayImages, FolderImages, ImageSource, UnreadableImage


def data_config(dataset: str, path: Path | str = "", size: int = 8, channels: int = 3) -> ConfigDict:
    data = get_config().data
    data.dataset, data.path, data.image_size, data.num_channels = dataset, str(path), size, channels
    return data


def numbered(n: int, size: int = 4, channels: int = 1) -> ArrayImages:
    """Image i is filled with the value i, so that a batch tells which images it holds."""
    return ArrayImages(np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None], (n, size, size)).copy(), size, channels)


class WithDamage:
    """Another source in which the images `damaged` cannot be read."""

    def __init__(self, source: ImageSource, damaged: set[int]) -> None:
        self.source, self.damaged, self.shape = source, damaged, source.shape

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> np.ndarray:
        if i in self.damaged:
            raise UnreadableImage(self.name(i), "damaged for the test")
        return self.source[i]

    def name(self, i: int) -> str:
        return f"image {i}"


def save_images(folder: Path, names: list[str], size: int = 8) -> None:
    """Grey PNG files; that of names[i] is filled with i."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (size, size), i).save(folder / name, "PNG")


def names_of(source: ImageSource) -> list[str]:
    return [source.name(i) for i in range(len(source))]


def decoded(
    tmp_path: Path, contents: Image.Image | bytes, suffix: str = ".png", size: int = 4, channels: int = 3, **save: Any
) -> np.ndarray:
    path = tmp_path / f"image{suffix}"
    if isinstance(contents, bytes):
        path.write_bytes(contents)
    else:
        contents.save(path, **save)
    return FolderImages(tmp_path, [path.name], size, channels)[0]


# --- decoding ---


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_every_kind_of_png_becomes_uint8_of_the_configured_shape(tmp_path: Path, mode: str, channels: int) -> None:
    white = Image.new("RGBA", (7, 5), (255, 255, 255, 255)).convert(mode)
    pixels = decoded(tmp_path, white, channels=channels)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (channels, 4, 4)
    assert (pixels == 255).all()


def test_grey_is_repeated_and_rgb_is_weighted_by_luminance(tmp_path: Path) -> None:
    assert (decoded(tmp_path, Image.new("L", (4, 4), 77)) == 77).all()
    green = decoded(tmp_path, Image.new("RGB", (4, 4), (0, 255, 0)), channels=1)
    assert (green == 150).all()  # ITU-R 601: 0.587 * 255


def test_channels_keep_their_order(tmp_path: Path) -> None:
    assert decoded(tmp_path, Image.new("RGB", (4, 4), (10, 20, 30)))[:, 0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("channels", [1, 3])
def test_transparency_is_laid_over_white(tmp_path: Path, channels: int) -> None:
    hidden_black = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert (decoded(tmp_path, hidden_black, channels=channels) == 255).all()
    half_black = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert np.abs(decoded(tmp_path, half_black, channels=channels).astype(int) - 127).max() <= 1


def test_transparent_palette_colour_is_white(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 0, 0])
    assert (decoded(tmp_path, image, transparency=1) == 255).all()
    assert (decoded(tmp_path, image) == 0).all()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_grey_is_scaled_not_cut(tmp_path: Path, suffix: str) -> None:
    image = Image.fromarray(np.full((4, 4), 128 * 257, dtype=np.uint16))
    assert (decoded(tmp_path, image, suffix) == 128).all()


def test_pgm_with_more_than_255_levels_is_scaled(tmp_path: Path) -> None:
    assert (decoded(tmp_path, b"P5 4 4 65535\n" + struct.pack(">H", 128 * 257) * 16, ".pgm") == 128).all()


@pytest.mark.parametrize("values", [np.full((4, 4), 0.5, np.float32), np.full((4, 4), 1 << 20, np.int32)])
def test_pixels_without_a_known_range_are_unreadable(tmp_path: Path, values: np.ndarray) -> None:
    with pytest.raises(UnreadableImage, match="pixels"):
        decoded(tmp_path, Image.fromarray(values), ".tif")


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[:, :4] = 255  # bright on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise: bright at the top
    pixels = decoded(tmp_path, Image.fromarray(picture), ".jpg", size=8, exif=exif)
    assert pixels[:, :3].min() > 200
    assert pixels[:, 5:].max() < 50


def test_large_images_are_scaled_with_antialiasing_and_cropped_to_the_middle(tmp_path: Path) -> None:
    stripes = np.zeros((64, 96), np.uint8)
    stripes[:, 16:80:2] = 200  # every other column: nearest or bilinear sampling would show all or nothing
    stripes[:, :16] = stripes[:, 80:] = 255  # what the crop to a square removes
    pixels = decoded(tmp_path, Image.fromarray(stripes), size=8, channels=1)
    assert np.abs(pixels.astype(int) - 100).max() < 20


def test_a_decompression_bomb_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From Pillow's limit on, not only from twice the limit as in Pillow itself."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for side in (11, 100):
            with pytest.raises(UnreadableImage, match="pixels"):
                decoded(tmp_path, Image.new("L", (side, side)))
    assert decoded(tmp_path, Image.new("L", (10, 10))).shape == (3, 4, 4)


def test_damaged_and_foreign_files_are_unreadable_by_name(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    for contents in (buffer.getvalue()[:500], b"<html>not found</html>", b""):
        with pytest.raises(UnreadableImage) as caught:
            decoded(tmp_path, contents)
        assert caught.value.name == "image.png"
        assert caught.value.reason
    with pytest.raises(UnreadableImage, match=r"gone\.png.*No such file"):
        FolderImages(tmp_path, ["gone.png"], 4, 3)[0]


def test_unreadable_image_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImage("a.png", "truncated")))
    assert (error.name, error.reason, str(error)) == ("a.png", "truncated", "a.png: truncated")


# --- arrays ---


@pytest.mark.parametrize("shape", [(5, 6, 6), (5, 6, 6, 1), (5, 6, 6, 3)])
def test_array_images_come_back_as_stored_without_a_copy(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    source = ArrayImages(array, 6, 3 if shape[-1] == 3 else 1)
    assert np.shares_memory(source[2], array)
    expected = array[2].reshape(6, 6, -1).transpose(2, 0, 1)
    np.testing.assert_array_equal(source[2], expected)
    assert source.name(2) == "image 2"


def test_array_images_are_converted_when_size_or_channels_differ() -> None:
    grey = ArrayImages(np.full((3, 9, 6), 50, np.uint8), 4, 3)
    assert grey.shape == grey[0].shape == (3, 4, 4)
    assert (grey[0] == 50).all()
    colour = ArrayImages(np.full((3, 4, 4, 3), [0, 255, 0], np.uint8), 4, 1)
    assert (colour[0] == 150).all()


# --- the data sets ---


def test_embedded_digits_are_4500_and_500_with_50_of_each_class_held_out() -> None:
    train, held_out = (load_images(data_config("mnist5k", size=28, channels=1), split) for split in ("train", "held_out"))
    assert (len(train), len(held_out)) == (4500, 500)
    assert not set(names_of(train)) & set(names_of(held_out))
    with np.load(datasets.DATA / "mnist5k.npz") as file:
        labels, images = file["labels"], file["images"]
    rows = [int(name.split()[1]) for name in names_of(held_out)]
    assert Counter(labels[rows].tolist()) == dict.fromkeys(range(10), 50)
    np.testing.assert_array_equal(held_out[7][0], images[rows[7]])


def test_names_of_data_sets_may_be_written_in_capitals() -> None:
    assert len(load_images(data_config("MNIST5K", size=28, channels=1), "train")) == 4500


def test_standard_places_are_below_the_repository_wherever_the_program_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(load_images(data_config("mnist5k", size=28, channels=1), "held_out")) == 500


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
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise URLError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


@pytest.mark.usefixtures("no_network")
def test_mnist_on_disk_is_read(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, contents in mnist_files().items():
        (raw / name).write_bytes(contents)
    data = data_config("mnist", tmp_path, size=28, channels=1)
    train, held_out = load_images(data, "train"), load_images(data, "held_out")
    assert [int(train[i].max()) for i in range(len(train))] == [0, 1, 2]
    assert len(held_out) == 2


@pytest.fixture
def mnist_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with tiny MNIST archives as a person might have put them there, which torchvision takes for the real ones."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    resources = []
    for name, contents in mnist_files().items():
        archive = gzip.compress(contents)
        (raw / f"{name}.gz").write_bytes(archive)
        resources.append((f"{name}.gz", hashlib.md5(archive).hexdigest()))
    monkeypatch.setattr(MNIST, "resources", resources)
    return tmp_path


@pytest.mark.usefixtures("no_network")
def test_mnist_archives_on_disk_are_unpacked_without_noise_on_stdout(
    mnist_archives: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    download = MNIST.download

    def noisy_download(self: MNIST) -> None:
        print("Extracting, as some versions of torchvision say")
        download(self)

    monkeypatch.setattr(MNIST, "download", noisy_download)
    assert len(load_images(data_config("mnist", mnist_archives, size=28, channels=1), "train")) == 3
    assert capsys.readouterr().out == ""
    assert {path.name for path in mnist_archives.iterdir()} == {"MNIST"}  # the temporary folder is gone


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("interrupted", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_half_unpacked_mnist_is_not_taken_for_complete(mnist_archives: Path, interrupted: str) -> None:
    """All four files are there, which is all that torchvision looks at, but one was cut off."""
    raw = mnist_archives / "MNIST" / "raw"
    for name, contents in mnist_files().items():
        (raw / name).write_bytes(contents[:-1] if name == interrupted else contents)
    data = data_config("mnist", mnist_archives, size=28, channels=1)
    assert len(load_images(data, "train")) == 3
    assert len(load_images(data, "held_out")) == 2
    assert (raw / interrupted).read_bytes() == mnist_files()[interrupted]


@pytest.mark.usefixtures("no_network")
def test_an_interrupted_download_leaves_nothing_that_looks_like_the_data_set(
    mnist_archives: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = mnist_archives / "MNIST" / "raw"
    (raw / "t10k-labels-idx1-ubyte.gz").unlink()  # three files will be unpacked, the fourth cannot be had
    with pytest.raises(UserError):
        load_images(data_config("mnist", mnist_archives, size=28, channels=1), "train")
    assert {path.suffix for path in raw.iterdir()} == {".gz"}


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(("name", "where"), [("mnist", "MNIST/raw"), ("cifar10", "cifar-10-python.tar.gz")])
def test_missing_download_says_in_one_line_where_to_get_it_and_where_it_goes(
    name: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "DATA", tmp_path)
    with pytest.raises(UserError) as caught:
        load_images(data_config(name), "train")
    message = str(caught.value)
    for part in (f"config.data.dataset = '{name}'", where, "https://", str(tmp_path), "no network in tests"):
        assert part in message
    assert "\n" not in message


def test_cifar10_is_read_in_rgb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    checksums = {}
    red_green_blue = np.array([[10, 20, 30]] * 3, np.uint8).repeat(1024, axis=1)  # each row a plane after the other
    for name, n in (("data_batch_1", 3), ("test_batch", 2), ("batches.meta", 0)):
        contents = pickle.dumps({"data": red_green_blue[:n], "labels": [0] * n, "label_names": ["a"]})
        (folder / name).write_bytes(contents)
        checksums[name] = hashlib.md5(contents).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", checksums["data_batch_1"]]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", checksums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": checksums["batches.meta"]})
    sources = [load_images(data_config("CIFAR10", tmp_path, size=32), split) for split in ("train", "held_out")]
    assert [len(source) for source in sources] == [3, 2]
    for source in sources:
        assert source[1][:, 5, 5].tolist() == [10, 20, 30]


@pytest.fixture
def lsun(tmp_path: Path) -> Path:
    """LSUN with 5 training images, filled with 0, 10, ..., the last one damaged, and 1 + 1 in the other split."""
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
def test_lsun_is_read_by_several_sources_and_by_forked_workers(lsun: Path, num_workers: int) -> None:
    data = data_config("lsun_church", lsun)
    sources = [load_images(data, "train"), load_images(data, "train")]  # LMDB itself refuses to open a file twice
    assert (len(sources[0]), len(load_images(data, "held_out"))) == (5, 2)
    assert sources[0][3][:, 0, 0].tolist() == [30, 0, 0]  # so that workers inherit an open environment
    for source in sources:
        batches = list(clean_batches(source, 2, num_workers, False))
        assert torch.cat([batch.images for batch in batches])[:, 0, 0, 0].mul(255).round().tolist() == [0, 10, 20, 30]
        assert batches[-1].unreadable == ("key4",)


def test_lsun_is_opened_once_not_for_every_image(lsun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    lmdb_open = lmdb.open

    def counting_open(path: str, **kwargs: Any) -> lmdb.Environment:
        opened.append(path)
        return lmdb_open(path, **kwargs)

    monkeypatch.setattr(lmdb, "open", counting_open)
    source = load_images(data_config("lsun_church", lsun), "train")
    assert [source[i].shape for i in range(4)] == [(3, 8, 8)] * 4
    assert len(opened) == 1


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
    save_images(tmp_path, ["train/cat/a.png", "train/dog/b.png", "train/wild/c.png", "val/cat/d.png", "val/dog/e.png"])
    data = data_config("afhq", tmp_path)
    assert names_of(load_images(data, "train")) == ["cat/a.png", "dog/b.png", "wild/c.png"]
    assert names_of(load_images(data, "held_out")) == ["cat/d.png", "dog/e.png"]


def test_ffhq_is_split_and_covered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The release tests on FFHQ's training images."""
    names = [f"{i // 10:05d}/{i:05d}.png" for i in range(30)]
    save_images(tmp_path / "ffhq-dataset" / "images1024x1024", names)
    monkeypatch.setattr(datasets, "DATA", tmp_path)
    train, held_out = (names_of(load_images(data_config("ffhq"), split)) for split in ("train", "held_out"))
    assert len(held_out) == 3
    assert sorted(train + held_out) == names


def test_folder_finds_images_of_any_suffix_in_subfolders_and_leaves_out_the_rest(tmp_path: Path) -> None:
    wanted = ["a.PNG", "b.JPeG", "deep/er/c.webp", "d.tiff"]
    save_images(tmp_path, [*wanted, "notes.txt", "._a.png", ".trash/e.png", "png"])
    data = data_config("folder", tmp_path)
    assert sorted(names_of(load_images(data, "train")) + names_of(load_images(data, "held_out"))) == sorted(wanted)


def test_linked_folders_are_followed_once_even_in_circles(tmp_path: Path) -> None:
    save_images(tmp_path / "elsewhere", ["a.png", "b.png"])
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "circle").symlink_to(tmp_path / "root")
    assert image_sources.list_images(tmp_path / "root") == ["link/a.png", "link/b.png"]


def test_split_of_a_folder_depends_on_names_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on the order in which the file system lists them, nor on where the folder is."""
    names = [f"{chr(97 + i % 3)}/{i}.png" for i in range(40)]
    save_images(tmp_path / "one", names)
    save_images(tmp_path / "two", names[::-1])
    walk = os.walk

    def backwards(*args: Any, **kwargs: Any) -> Any:
        for folder, subfolders, files in walk(*args, **kwargs):
            subfolders.reverse()
            yield folder, subfolders, files[::-1]

    def listed(root: Path) -> list[list[str]]:
        return [names_of(load_images(data_config("folder", root), split)) for split in ("train", "held_out")]

    expected = listed(tmp_path / "one")
    monkeypatch.setattr(os, "walk", backwards)
    assert listed(tmp_path / "two") == expected
    assert expected[0] == sorted(expected[0])


@given(st.sets(st.binary(min_size=1, max_size=12), min_size=2, max_size=60), st.randoms())
@hypothesis_settings(max_examples=50, deadline=None)
def test_split_is_disjoint_covering_and_independent_of_order(keys: set[bytes], random: Any) -> None:
    one = sorted(keys)
    other = one.copy()
    random.shuffle(other)
    train, held_out = split_indices(one, "train"), split_indices(one, "held_out")
    assert len(held_out) == max(1, len(keys) // 10)
    assert sorted([*train, *held_out]) == list(range(len(keys)))
    assert {one[i] for i in held_out} == {other[i] for i in split_indices(other, "held_out")}


def test_at_most_1000_images_are_held_out_and_they_come_from_all_over() -> None:
    held_out = split_indices([f"{i:08d}".encode() for i in range(20000)], "held_out")
    assert len(held_out) == 1000
    assert np.histogram(held_out, bins=10, range=(0, 20000))[0].min() > 50


def test_the_split_never_changes() -> None:
    """Another split would move training images into the held-out set of runs that go on."""
    assert split_indices([f"{i}.png".encode() for i in range(30)], "held_out").tolist() == [3, 14, 22]


@pytest.mark.parametrize("shape", [(20, 8, 8), (20, 8, 8, 1), (20, 8, 8, 3), (20, 10, 9, 3)])
def test_npy_is_memory_mapped_and_split(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    np.save(tmp_path / "a.npy", array)
    train, held_out = (load_images(data_config("npy", tmp_path / "a.npy"), split) for split in ("train", "held_out"))
    assert (len(train), len(held_out)) == (18, 2)
    assert len({*names_of(train), *names_of(held_out)}) == 20
    assert isinstance(train._array, np.memmap) or isinstance(train._array.base, np.memmap)  # type: ignore[attr-defined]
    assert held_out[1].shape == (3, 8, 8)
    if shape == (20, 8, 8, 3):
        np.testing.assert_array_equal(held_out[1], array[int(held_out.name(1).split()[1])].transpose(2, 0, 1))


# --- messages ---


def check_message(data: ConfigDict, *parts: str, split: datasets.Split = "train") -> None:
    with pytest.raises(UserError) as caught:
        load_images(data, split)
    message = str(caught.value)
    for part in ("config.data.dataset", repr(data.dataset), data.path, *parts):
        assert part in message
    assert "\n" not in message


def test_unknown_data_set_lists_the_known_ones() -> None:
    check_message(data_config("celeba"), "mnist5k, mnist, cifar10, lsun_church, ffhq, afhq, folder, npy")


@pytest.mark.parametrize("name", ["folder", "npy"])
def test_own_images_need_a_path(name: str) -> None:
    check_message(data_config(name), "config.data.path is empty")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("ffhq", ("no folder", "ffhq-dataset/images1024x1024", "NVlabs/ffhq-dataset")),
        ("afhq", ("no folder", "afhq/val", "stargan-v2")),
        ("lsun_church", ("no folder", "lsun/church_outdoor_val_lmdb", "download script")),
        ("mnist5k", ("mnist5k.npz", "No such file")),
    ],
)
def test_missing_data_set_says_where_to_get_it_and_where_it_goes(
    name: str, parts: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "DATA", tmp_path)
    check_message(data_config(name), str(tmp_path))
    check_message(data_config(name), *parts, split="held_out")


@pytest.mark.parametrize("name", sorted(datasets.DATA_SETS))
def test_missing_path_is_named(name: str, tmp_path: Path) -> None:
    check_message(data_config(name, tmp_path / "nowhere"), "config.data.path")


def test_folder_with_too_few_images(tmp_path: Path) -> None:
    check_message(data_config("folder", tmp_path), "has no image files")
    save_images(tmp_path, ["a.png"])
    check_message(data_config("folder", tmp_path), "has 1 image files, where at least 2 are needed")


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    save_images(tmp_path, ["a.png"])
    check_message(data_config("folder", tmp_path / "a.png"), "no folder")


def test_unlistable_subfolder_is_an_error_not_a_smaller_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_images(tmp_path, ["a.png", "b.png", "locked/c.png"])
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    check_message(data_config("folder", tmp_path), "Permission denied", "locked")


@pytest.mark.parametrize("contents", [b"", b"not a database" * 1000])
def test_damaged_lsun(tmp_path: Path, contents: bytes) -> None:
    folder = tmp_path / "church_outdoor_train_lmdb"
    folder.mkdir()
    (folder / "data.mdb").write_bytes(contents)
    check_message(data_config("lsun_church", tmp_path), "is not an LMDB")


def test_empty_lsun(tmp_path: Path) -> None:
    lmdb.open(str(tmp_path / "church_outdoor_train_lmdb")).close()
    check_message(data_config("lsun_church", tmp_path), "has no images")


@pytest.mark.parametrize(
    ("array", "part"),
    [
        (np.zeros((4, 8, 8), np.float32), "float32 (4, 8, 8)"),
        (np.zeros((8, 8), np.uint8), "uint8 (8, 8)"),
        (np.zeros((4, 3, 8, 8), np.uint8), "uint8 (4, 3, 8, 8)"),
        (np.zeros((4, 8, 8, 4), np.uint8), "uint8 (4, 8, 8, 4)"),
        (np.zeros((1, 8, 8), np.uint8), "fewer than 2 images"),
        (np.zeros((4, 0, 8), np.uint8), "fewer than 2 images"),
        (np.array([{}, {}], dtype=object), "not an array that NumPy can map"),
    ],
)
def test_unsuitable_npy(tmp_path: Path, array: np.ndarray, part: str) -> None:
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    check_message(data_config("npy", tmp_path / "a.npy"), part, "uint8 (N, H, W) or (N, H, W, C)")


@pytest.mark.parametrize(
    "contents", [b"", b"text", pickle.dumps([1, 2]), b"\x93NUMPY\x01\x00truncated", b"PK\x03\x04truncated"]
)
def test_file_that_is_not_npy(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(contents)
    check_message(data_config("npy", tmp_path / "a.npy"), "not an array that NumPy can map")


def test_npz_and_folder_given_as_npy(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 8, 8), np.uint8))
    check_message(data_config("npy", tmp_path / "a.npz"), ".npz")
    check_message(data_config("npy", tmp_path), "Is a directory")


def test_damaged_embedded_digits(tmp_path: Path) -> None:
    (tmp_path / "m.npz").write_bytes((datasets.DATA / "mnist5k.npz").read_bytes()[:1000])
    check_message(data_config("mnist5k", tmp_path / "m.npz"), "cannot be read")


# --- training batches ---


@given(n=st.integers(2, 40), batch_size=st.integers(1, 60), seed=st.integers(0, 2**64 - 1))
@hypothesis_settings(max_examples=60, deadline=None)
def test_each_epoch_visits_every_image_exactly_once(n: int, batch_size: int, seed: int) -> None:
    """Also where a batch straddles epochs or holds several."""
    batches = TrainBatches(numbered(n), seed, batch_size, False, False)
    epochs = 3
    seen = torch.cat([batches[step].indices for step in range(math.ceil(epochs * n / batch_size))])
    for epoch in range(epochs):
        assert sorted(seen[epoch * n : (epoch + 1) * n].tolist()) == list(range(n))


def test_epochs_and_seeds_have_different_orders() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return TrainBatches(numbered(50), seed, 50, False, False)[epoch].indices.tolist()

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_batch_size_does_not_change_the_order_of_images() -> None:
    by_3 = TrainBatches(numbered(10), 7, 3, False, False)
    by_5 = TrainBatches(numbered(10), 7, 5, False, False)
    assert torch.equal(torch.cat([by_3[i].indices for i in range(5)]), torch.cat([by_5[i].indices for i in range(3)]))


def assert_same(a: list[Batch], b: list[Batch]) -> None:
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.indices, other.indices)
        assert one.unreadable == other.unreadable


def random_source(n: int = 13) -> ArrayImages:
    return ArrayImages(np.random.default_rng(3).integers(256, size=(n, 6, 6, 3), dtype=np.uint8), 6, 3)


def make_train_batches(batch_size: int = 5) -> TrainBatches:
    return TrainBatches(WithDamage(random_source(), {2, 3}), 42, batch_size, True, True)


def test_a_batch_is_a_function_of_seed_and_step_whatever_was_asked_before() -> None:
    in_order = make_train_batches()
    expected = [in_order[step] for step in range(9)]
    jumping = make_train_batches()
    assert_same([jumping[step] for step in (8, 0, 5, 8, 3)], [expected[step] for step in (8, 0, 5, 8, 3)])


def test_a_long_run_does_not_collect_permutations() -> None:
    batches = make_train_batches()
    for step in range(20):
        batches[step]
    assert len(batches._permutations) == 2


def test_loader_gives_the_same_batches_with_workers_and_from_the_middle() -> None:
    expected = [make_train_batches()[step] for step in range(9)]
    assert_same(list(train_loader(make_train_batches(), 0, 9, num_workers=0)), expected)
    assert_same(list(train_loader(make_train_batches(), 0, 9, num_workers=2)), expected)
    assert_same(list(train_loader(make_train_batches(), 4, 9, num_workers=2)), expected[4:])
    assert list(train_loader(make_train_batches(), 9, 9, num_workers=2)) == []


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loader_leaves_the_global_random_numbers_alone(num_workers: int) -> None:
    before = torch.get_rng_state()
    list(train_loader(make_train_batches(), 0, 2, num_workers))
    assert torch.equal(torch.get_rng_state(), before)


def test_memory_mapped_arrays_reach_workers(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(256, size=(20, 8, 8), dtype=np.uint8))
    batches = TrainBatches(load_images(data_config("npy", tmp_path / "a.npy", channels=1), "train"), 0, 4, False, False)
    assert_same(list(train_loader(batches, 0, 5, num_workers=2)), [batches[step] for step in range(5)])


def test_batches_are_pinned_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """DataLoader passes over classes that it does not know: Batch must do it."""
    pinned = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor)
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    batch = make_train_batches()[0]
    assert_same([pin_memory(batch)], [batch])
    assert any(tensor is batch.images for tensor in pinned)


def test_flips_mirror_about_half_of_the_training_images_left_to_right() -> None:
    array = np.zeros((2, 4, 4), np.uint8)
    array[:, 0, 0] = 255  # top left
    batches = TrainBatches(ArrayImages(array, 4, 1), 0, 64, True, False)
    images = torch.cat([batches[step].images for step in range(20)])
    assert ((images[:, 0, 0, 0] == 1) ^ (images[:, 0, 0, 3] == 1)).all()
    mirrored = (images[:, 0, 0, 3] == 1).float().mean().item()
    assert 0.43 < mirrored < 0.57  # five standard deviations of 1280 throws
    unflipped = TrainBatches(ArrayImages(array, 4, 1), 0, 64, False, False)[0].images
    assert (unflipped[:, 0, 0, 0] == 1).all()


def test_flipping_leaves_the_source_untouched() -> None:
    array = np.random.default_rng(0).integers(256, size=(8, 4, 4), dtype=np.uint8)
    before = array.copy()
    TrainBatches(ArrayImages(array, 4, 1), 0, 64, True, True)[0]
    np.testing.assert_array_equal(array, before)


def test_values_are_v_over_255_without_dequantisation() -> None:
    source = ArrayImages(np.arange(256, dtype=np.uint8).reshape(1, 16, 16).repeat(2, axis=0), 16, 1)
    batch = TrainBatches(source, 0, 2, False, False)[0]
    assert batch.images.dtype == torch.float32
    assert batch.images.shape == (2, 1, 16, 16)
    assert torch.equal(batch.images[0].flatten(), torch.arange(256) / 255)


def test_dequantised_values_stay_within_their_level_and_fill_it() -> None:
    source = ArrayImages(np.arange(256, dtype=np.uint8).reshape(1, 16, 16).repeat(2, axis=0), 16, 1)
    batches = TrainBatches(source, 0, 64, False, True)
    images = torch.cat([batches[step].images for step in range(20)])
    assert torch.equal((images * 256).floor(), torch.arange(256.0).reshape(1, 16, 16).expand_as(images))
    noise = images * 256 % 1
    assert 0 <= noise.min() < 1e-3
    assert 1 - 1e-3 < noise.max() < 1
    assert abs(noise.mean() - 0.5) < 0.005


def test_training_noise_differs_between_images_steps_and_epochs() -> None:
    batches = TrainBatches(ArrayImages(np.zeros((4, 4, 4), np.uint8), 4, 1), 0, 4, False, True)
    images = torch.cat([batches[step].images for step in range(3)])
    assert len({tuple(image.flatten().tolist()) for image in images}) == 12


def test_unreadable_training_image_is_replaced_by_the_next_readable_one_and_named() -> None:
    source = WithDamage(numbered(6), {2, 3, 5})
    batches = TrainBatches(source, 0, 6, False, False)
    clean = TrainBatches(numbered(6), 0, 6, False, False)
    batch = batches[0]
    replacement = {0: 0, 1: 1, 2: 4, 3: 4, 4: 4, 5: 0}
    assert batch.indices.tolist() == [replacement[i] for i in clean[0].indices.tolist()]
    assert torch.equal(batch.images[:, 0, 0, 0].mul(255).round().long(), batch.indices)
    assert sorted(batch.unreadable) == ["image 2", "image 3", "image 5"]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_nothing_readable_is_a_user_error_of_one_line_even_from_a_worker(num_workers: int) -> None:
    source = WithDamage(numbered(4), {0, 1, 2, 3})
    for batches in (
        train_loader(TrainBatches(source, 0, 2, False, False), 0, 3, num_workers),
        clean_batches(source, 2, num_workers, False),
        iter(HeldOutBatches(source, 0, 2, 0, False, num_workers)),
    ):
        with pytest.raises(UserError, match="none of the 4 images can be read, such as image") as caught:
            list(batches)
        assert "\n" not in str(caught.value)


def test_a_truncated_file_among_good_ones_is_named_and_passed_over(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(4)]
    save_images(tmp_path, names)
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:50])
    source = FolderImages(tmp_path, names, 8, 1)
    batch = TrainBatches(source, 0, 4, False, False)[0]
    assert sorted(batch.indices.tolist()) == [0, 2, 2, 3]
    assert batch.unreadable == ("1.png",)
    for batches in (HeldOutBatches(source, 0, 4, 0, False, num_workers=1), clean_batches(source, 4, 1, False)):
        (only,) = batches
        assert only.indices.tolist() == [0, 2, 3]
        assert only.images[:, 0, 0, 0].mul(255).round().tolist() == [0, 2, 3]
        assert only.unreadable == ("1.png",)


# --- held-out and clean batches ---


@pytest.mark.parametrize(("num_images", "expected"), [(0, 10), (7, 7), (99, 10)])
def test_held_out_batches_are_the_first_images_in_order(num_images: int, expected: int) -> None:
    batches = HeldOutBatches(numbered(10), 0, 4, num_images, False)
    seen = list(batches)
    assert len(batches) == len(seen) == math.ceil(expected / 4)
    assert torch.cat([batch.indices for batch in seen]).tolist() == list(range(expected))
    assert torch.cat([batch.images for batch in seen])[:, 0, 0, 0].mul(255).round().tolist() == list(range(expected))
    assert seen[0].indices.dtype == torch.int64


def test_held_out_noise_is_fixed_and_independent_of_batch_size_and_workers() -> None:
    def images(batch_size: int, num_workers: int = 0, seed: int = 5) -> torch.Tensor:
        batches = HeldOutBatches(random_source(), seed, batch_size, 0, True, num_workers)
        return torch.cat([batch.images for batch in batches])

    expected = images(4)
    assert torch.equal(images(4), expected)
    assert torch.equal(images(13), expected)
    assert torch.equal(images(3, num_workers=2), expected)
    assert not torch.equal(images(4, seed=6), expected)
    source = random_source()
    assert torch.equal((expected * 256).floor(), torch.from_numpy(np.stack([source[i] for i in range(13)])).float())


def test_held_out_noise_does_not_move_to_other_images_when_one_becomes_unreadable() -> None:
    complete = next(iter(HeldOutBatches(random_source(), 0, 13, 0, True))).images
    damaged = next(iter(HeldOutBatches(WithDamage(random_source(), {4}), 0, 13, 0, True)))
    assert torch.equal(damaged.images, complete[damaged.indices])
    assert len(damaged.indices) == 12


def test_held_out_images_differ_in_noise_from_each_other() -> None:
    (batch,) = HeldOutBatches(ArrayImages(np.zeros((5, 4, 4), np.uint8), 4, 1), 0, 5, 0, True)
    assert len({tuple(image.flatten().tolist()) for image in batch.images}) == 5


@pytest.mark.parametrize("dequantize", [False, True])
def test_clean_batches_are_the_mean_of_what_training_sees(dequantize: bool) -> None:
    source = random_source()
    images = torch.cat([batch.images for batch in clean_batches(source, 4, 0, dequantize)])
    v = torch.from_numpy(np.stack([source[i] for i in range(13)])).float()
    assert torch.equal(images, (v + 0.5) / 256 if dequantize else v / 255)


@pytest.mark.parametrize("damaged", [{0, 1}, {2, 3}, {4, 5}, {0, 1, 2, 3}, {2, 3, 4, 5}, {1, 4}])
def test_no_ordered_batch_is_empty_and_every_unreadable_name_arrives(damaged: set[int]) -> None:
    """A mean over an empty batch would be nan."""
    batches = list(clean_batches(WithDamage(numbered(6), damaged), 2, 0, False))
    assert all(len(batch.images) == len(batch.indices) > 0 for batch in batches)
    assert torch.cat([batch.indices for batch in batches]).tolist() == sorted({*range(6)} - damaged)
    assert [name for batch in batches for name in batch.unreadable] == [f"image {i}" for i in sorted(damaged)]
