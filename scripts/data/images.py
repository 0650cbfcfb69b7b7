"""Where images come from: an array, a folder or LSUN's LMDB, each read as `source[i] -> uint8 (C, S, S)`."""

import contextlib
import functools
import io
import os
import socket
import sys
import tempfile
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from shutil import copyfile
from typing import Any, BinaryIO, Literal, Protocol

import lmdb
import numpy as np
from PIL import Image, ImageOps

from scripts.errors import printable

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is decoded, whatever a file's suffix says: of Pillow's other formats, EPS is a program that Ghostscript would run."""
DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer


class Unusable(Exception):
    """Why a place does not hold the data set that it should; `load_images` adds key, value and advice."""


class UnreadableImage(Exception):
    """One image that cannot be decoded: truncated, not an image at all, or too large to be honest."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # both arguments, so that it survives pickling
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class ImageSource(Protocol):
    """Images in a fixed order, all of one shape (C, S, S), C 1 or 3."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, S, S) of every image."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> np.ndarray:
        """Image i, uint8 (C, S, S), possibly a read-only view. Raises UnreadableImage."""

    def name(self, i: int) -> str:
        """What to call image i in a message: its file name, or "image 17"."""


def names_crc32(names: Iterable[str]) -> int:
    """A checksum of image names in their order: another one means other images, or the same ones in other places."""
    return zlib.crc32("\n".join(names).encode("utf-8", "surrogateescape"))


class ArrayImages:
    """The rows `indices` (default: all) of a uint8 array (N, H, W) or (N, H, W, C), C 1 or 3, in memory or memory-mapped."""

    def __init__(self, array: np.ndarray, image_size: int, num_channels: int, indices: np.ndarray | None = None) -> None:
        self.shape = (num_channels, image_size, image_size)
        # (N, H, W, 1) is how some tools write grey images; Pillow knows them without the last axis.
        self._array = array[..., 0] if array.ndim == 4 and array.shape[-1] == 1 else array
        self._indices = np.arange(len(array)) if indices is None else indices
        channels = 1 if self._array.ndim == 3 else 3
        self._as_stored = (channels, *self._array.shape[1:3]) == self.shape

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, i: int) -> np.ndarray:
        pixels = np.asarray(self._array[self._indices[i]])
        if self._as_stored:
            return channels_first(pixels)
        return fit_image(Image.fromarray(pixels), self.shape)

    def name(self, i: int) -> str:
        return f"image {self._indices[i]}"


class FolderImages:
    """Image files named by `paths` relative to `root`, decoded when asked for."""

    def __init__(self, root: Path, paths: Sequence[str], image_size: int, num_channels: int) -> None:
        self.shape = (num_channels, image_size, image_size)
        self._root = root
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, i: int) -> np.ndarray:
        try:
            with (self._root / self._paths[i]).open("rb") as file:
                return decode_image(file, self.name(i), self.shape)
        except OSError as error:
            raise UnreadableImage(self.name(i), str(error)) from error

    def name(self, i: int) -> str:
        # A file name may hold bytes that are not text; a log must still be able to print it.
        return printable(os.fsencode(self._paths[i]).decode("utf-8", "backslashreplace"))


class LsunImages:
    """One class of LSUN, such as `church_outdoor_train_lmdb`: an LMDB of encoded images, in the order of their keys.

    This reads what torchvision.datasets.LSUN reads, without going through it: that keeps the list of keys as a pickle
    `_cache_<letters of the path>` in the working directory, and unpickles whatever file of that name it finds there.
    Unpickling runs code, and databases whose paths have the same letters would share one list. Listing takes a second.

    Raises lmdb.Error if `folder` is not an LMDB.
    """

    def __init__(self, folder: Path, image_size: int, num_channels: int) -> None:
        self.shape = (num_channels, image_size, image_size)
        self._folder = str(folder.resolve())
        with _lmdb_environment(self._folder).begin() as transaction:
            self._keys = list(transaction.cursor().iternext(keys=True, values=False))

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, i: int) -> np.ndarray:
        try:
            with _lmdb_environment(self._folder).begin() as transaction:
                encoded = transaction.get(self._keys[i])
        except lmdb.Error as error:
            raise UnreadableImage(self.name(i), str(error)) from error
        if encoded is None:
            raise UnreadableImage(self.name(i), "its key is no longer in the database")
        return decode_image(io.BytesIO(encoded), self.name(i), self.shape)

    def name(self, i: int) -> str:
        return printable(self._keys[i].decode("utf-8", "backslashreplace"))


@functools.cache
def _lmdb_environment(folder: str) -> lmdb.Environment:
    """The one environment of `folder` in this process: LMDB refuses to open a database twice.

    Forked loader workers use the one they inherit. LMDB warns against that because of its table of readers and its locks, and
    a read-only environment without locks has neither: what is inherited is a memory map.
    """
    return lmdb.open(folder, readonly=True, lock=False, create=False, readahead=False, meminit=False)


def decode_image(file: BinaryIO, name: str, shape: tuple[int, int, int]) -> np.ndarray:
    """The first image in an encoded file, upright, as uint8 (C, S, S) = `shape`. Raises UnreadableImage."""
    with opened_image(file, name) as image:
        return fit_image(ImageOps.exif_transpose(image), shape)


@contextlib.contextmanager
def opened_image(file: BinaryIO | Path, name: str) -> Iterator[Image.Image]:
    """The first image in an encoded file. Raises UnreadableImage for whatever goes wrong, also in the context's body."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below
            image = Image.open(file, formats=IMAGE_FORMATS)
        with image:
            # Pillow itself only warns up to twice its limit against decompression bombs.
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise ValueError(f"{image.width} x {image.height} pixels, over the limit of {limit} for an honest image")
            yield image
    except MemoryError:
        raise  # this machine's state, not the image's: skipping it would change the data from run to run
    except Exception as error:  # damaged files make Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error, ...
        raise UnreadableImage(name, str(error) or type(error).__name__) from error


def fit_image(image: Image.Image, shape: tuple[int, int, int]) -> np.ndarray:
    """Any Pillow image as uint8 (C, S, S) = `shape`: alpha laid over white, L or RGB, scaled and cropped to the middle square.

    Raises ValueError for pixels without a known range (floating point, 32-bit integers).
    """
    channels, height, width = shape
    image = _eight_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    return channels_first(np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)))


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey scaled to 8 bits: Pillow's own conversion cuts everything above 255 to white."""
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image).astype(np.int64)  # mode I: Pillow's 32-bit name for 16-bit PGM, and PNG before Pillow 11
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"integer pixels from {values.min()} to {values.max()}, not 8 or 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def channels_first(pixels: np.ndarray) -> np.ndarray:
    """(H, W) -> (1, H, W) or (H, W, C) -> (C, H, W), as a view."""
    return pixels[np.newaxis] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def list_images(root: Path) -> list[str]:
    """Paths of all image files below `root`, relative to it with forward slashes, sorted; hidden names are left out.

    Linked folders are followed, each folder once, so that links in a circle end. Raises OSError for a folder that cannot be
    listed: leaving it out in silence would change the data set.
    """
    found: list[str] = []
    visited: set[str] = set()

    def stop(error: OSError) -> None:
        raise error

    for folder, subfolders, files in os.walk(root, onerror=stop, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        # Sorted, so that which of two links to a folder counts does not depend on the file system's order.
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        # Hidden files are mostly not images whatever their suffix: macOS leaves "._photo.jpg" beside each photo.jpg.
        images = (name for name in files if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES)
        found += [(Path(folder) / name).relative_to(root).as_posix() for name in images]
    return sorted(found)


TorchvisionName = Literal["MNIST", "CIFAR10"]


def torchvision_class(name: TorchvisionName) -> Any:
    """A data set of torchvision, which takes two seconds to import, and is needed for these only."""
    import torchvision.datasets

    return getattr(torchvision.datasets, name)


def torchvision_array(name: TorchvisionName, root: Path, train: bool) -> np.ndarray:
    """The uint8 images (N, H, W[, C]) of a data set that torchvision keeps below `root`, downloaded if they are not there.

    Raises Unusable.
    """
    require_folder(root)
    kind = torchvision_class(name)

    def read() -> np.ndarray:
        array = np.asarray(kind(root, train=train).data)
        if array.dtype != np.uint8 or array.ndim != (3 if name == "MNIST" else 4):
            raise ValueError(f"{name} has {array.dtype} {array.shape}")  # torchvision takes some files as they are
        return array

    try:
        return read()
    except OSError:
        raise
    except Exception as error:  # torchvision's readers raise whatever missing or damaged files lead them to
        found = error
    try:
        _download(kind, root)
        return read()
    except Exception as error:  # the errors of network, archives and disk have no common class
        raise Unusable(f"{root} does not hold {name} ({found}) and downloading it failed ({error})") from error


def _download(kind: Any, root: Path) -> None:
    """Let a class of torchvision download below `root`, in a temporary folder, and move whole files from there into place.

    torchvision would write them in place, and takes an MNIST file for complete if it is there, so that one that an interruption
    or another process left half written would do. Archives that a person already put there are used, not downloaded again.
    """
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as staging, contextlib.redirect_stdout(sys.stderr):
            for archive in (*root.glob("MNIST/raw/*.gz"), *root.glob("cifar-10-python.tar.gz")):
                copy = Path(staging) / archive.relative_to(root)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copyfile(archive, copy)
            kind(staging, download=True)
            for file in Path(staging).rglob("*"):
                if file.is_file() and file.suffix != ".gz":
                    target = root / file.relative_to(staging)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    file.replace(target)
    finally:
        socket.setdefaulttimeout(timeout)


def require_folder(folder: Path) -> None:
    """Raises Unusable if there is no such folder."""
    if not folder.is_dir():
        raise Unusable(f"there is no folder {folder}")
