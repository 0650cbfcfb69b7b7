"""Where images come from: an array, a folder or an LMDB of LSUN, each read as `source[i] -> (C, H,
W)` in one of the types of `values.TOP`, mostly uint8.
"""

import contextlib
import functools
import io
import os
import re
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, Protocol, Self

import lmdb
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.Image import Resampling
from PIL.PngImagePlugin import MAX_TEXT_MEMORY, PngStream

from scripts.data.values import EIGHT_BIT, Values, as_uint8, with_channels
from scripts.data.values import KEY as VALUES
from scripts.errors import one_line, printable
from scripts.runtime.progress import warn_once

Image.init()
_SUFFIXES = {
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "JPEG": (".jpeg", ".jpg", ".jfif", ".jpe"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "PPM": (".pgm", ".ppm", ".pnm", ".pbm"),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
}
IMAGE_FORMATS = tuple(name for name in _SUFFIXES if name in Image.OPEN)
"""Formats that are decoded, whatever the suffix, as far as Pillow was built with them. Others of
its are unsafe: it would run an EPS file in Ghostscript."""
IMAGE_SUFFIXES = frozenset(suffix for name in IMAGE_FORMATS for suffix in _SUFFIXES[name])
FINGERPRINT_IMAGES = 64
THIN = 8
"""Above this ratio of its sides, as multiples of those it is to have, an image is cropped before it
is resized."""
WITH_FRAMES = (".tif", ".tiff", ".gif", ".webp", ".png", ".avif")
FRAME = re.compile(r"(.+\.(?:tiff?|gif|webp|png|avif))\[(\d+)\]", re.IGNORECASE | re.DOTALL)
"""The name of a frame, see `file_and_frame`."""
ORIENTATION = 0x0112
"""EXIF's tag for how an image is to be turned."""
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""Pillow's names for image files read as so many channels."""

Shape = tuple[int, int, int]


class UnreadableImage(Exception):
    """One image that cannot be decoded: missing, truncated, no image, or so large that Pillow
    refuses it.
    """

    def __init__(self, name: str, reason: object) -> None:
        super().__init__(f"{name}: {reason}")


class Images(Protocol):
    """Images in a fixed order, of any sizes."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> np.ndarray:
        """Image i, (C, H, W), possibly a read-only view.

        Safe to call from several threads. Raises UnreadableImage.
        """

    def name(self, i: int) -> str:
        """What to call image i in a message: its file name, or "image 17"."""

    def version(self) -> str:
        """What tells the images from all others on this machine, at little cost, see
        `files_version`.
        """


class ImageSource(Images, Protocol):
    """Images of one shape (C, H, W)."""

    shape: Shape
    dtype: np.dtype
    """Of the pixels, one of `values.TOP`, which has the value of 1."""
    found: str
    """What was found in the files, in words; empty if they were not looked at."""
    labels: np.ndarray | None
    """Classes from 0, int64 (N,); None where images have none."""
    classes: tuple[str, ...]
    """Their names."""


def fingerprint(images: ImageSource) -> dict[str, int]:
    """Tell one set of images from another: how many there are, their names and labels, and the
    pixels of up to 64 spread evenly.
    """
    return identity(images)[0]


def identity(images: ImageSource) -> tuple[dict[str, int], dict[str, np.ndarray]]:
    """The fingerprint, and what `describe_change` needs to say what has changed.

    These are "names", the CRC32 of each name, uint32 (N,), and "pixels", the CRC32 of each image
    that the fingerprint looks at, uint32 (up to 64,), 0 where it cannot be read.
    """
    names = [images.name(i).encode() for i in range(len(images))]
    crc32, of_each = 0, []
    for i in spread_evenly(len(images)):
        pixels = b""
        with contextlib.suppress(UnreadableImage):
            pixels = images[i].tobytes()
        crc32 = zlib.crc32(pixels, crc32)
        of_each.append(zlib.crc32(pixels))
    numbers = {
        "num_images": len(images),
        "names_crc32": zlib.crc32(b"\n".join(names)),
        "pixels_crc32": crc32,
    }
    if images.labels is not None:
        numbers["labels_crc32"] = labels_crc32(images)
    of_names = np.array([zlib.crc32(name) for name in names], np.uint32)
    return numbers, {"names": of_names, "pixels": np.array(of_each, np.uint32)}


def labels_crc32(images: ImageSource) -> int:
    """CRC32 of the labels and the names of the classes."""
    assert images.labels is not None
    names = "\n".join(images.classes).encode("utf-8", "surrogateescape")
    return zlib.crc32(images.labels.astype("<i8").tobytes(), zlib.crc32(names))


def describe_change(
    images: Images, now: Mapping[str, np.ndarray], before: Mapping[str, np.ndarray]
) -> str:
    """What has changed in a set of images, such as "names: 3 gone, 1 new, such as a.png".

    now: what `identity` says of `images`; before: what it said.
    """
    gone = np.setdiff1d(before["names"], now["names"])
    new = np.flatnonzero(~np.isin(now["names"], before["names"]))
    if len(new):
        return f"names: {len(gone)} gone, {len(new)} new, such as {_few_names(images, new)}"
    if len(gone):
        return f"names: {len(gone)} gone, 0 new"
    if not np.array_equal(now["names"], before["names"]):
        return "the same names in another order"
    looked_at = np.array(spread_evenly(len(images)))
    other = looked_at[now["pixels"] != before["pixels"]]
    return f"other pixels in {len(other)} of {len(looked_at)} images: {_few_names(images, other)}"


def _few_names(images: Images, indices: np.ndarray) -> str:
    names = [images.name(i) for i in indices[:3]]
    if len(indices) > 3:
        names.append("...")
    return ", ".join(names)


def all_pixels(images: Images) -> np.ndarray:
    """All images at once, in 8 bits, uint8 (N, C, H, W): for sets of one shape that fit into
    memory.
    """
    return np.stack([as_uint8(images[i]) for i in range(len(images))])


def spread_evenly(num_images: int, most: int = FINGERPRINT_IMAGES) -> list[int]:
    """Up to `most` of so many indices: a data set may be sorted by class."""
    return np.linspace(0, num_images - 1, min(num_images, most)).astype(int).tolist()


def files_version(paths: Iterable[Path], *others: object) -> str:
    """Tells files from others by all their names, sizes and times of modification, without reading
    them.

    others: what the images depend on besides.
    """
    digest = blake2b(repr(others).encode("utf-8", "surrogateescape"), digest_size=8)
    for path in paths:
        digest.update(os.fsencode(path.name))
        if path.exists():
            state = path.stat()
            digest.update(repr((state.st_size, state.st_mtime_ns)).encode())
    return digest.hexdigest()


def checksums(images: Iterable[np.ndarray]) -> np.ndarray:
    """CRC32 of the pixels of each image: uint32 (N,)."""
    return np.array([zlib.crc32(image.tobytes()) for image in images], np.uint32)


def checksum(of_images: np.ndarray) -> int:
    """One number of the `checksums` of images in their order."""
    return zlib.crc32(of_images.astype(np.uint32).tobytes())


# --- resizing ---

Size = tuple[int, int]
"""Height and width in pixels."""
Resize = Callable[[Image.Image, Size], Image.Image]
"""From an image of any size to another size."""


def box_bicubic(image: Image.Image, size: Size) -> Image.Image:
    """Box halvings to less than twice the size, bicubic until it covers the size, the middle: as
    the release and guided-diffusion do it.
    """
    image, (height, width) = _without_thin_ends(image, size), size
    while image.height >= 2 * height and image.width >= 2 * width:
        image = image.resize((image.width // 2, image.height // 2), Resampling.BOX)
    scale = max(height / image.height, width / image.width)
    scaled = round(image.width * scale), round(image.height * scale)
    return _middle(image.resize(scaled, Resampling.BICUBIC), width, height)


def bilinear(image: Image.Image, size: Size) -> Image.Image:
    """torchvision's `Resize(size)` and `CenterCrop(size)`, what the release does with LSUN, MNIST
    and CIFAR-10; for rectangles resized until it covers the size.
    """
    from torchvision.transforms.functional import center_crop, resize  # takes seconds to import

    image, (height, width) = _without_thin_ends(image, size), size
    if width * image.height >= height * image.width:
        scaled = [int(width * image.height / image.width), width]
    else:
        scaled = [height, int(height * image.width / image.height)]
    return center_crop(resize(image, scaled), [height, width])


def padded(image: Image.Image, size: Size) -> Image.Image:
    """The whole image, bicubic, in the middle; its edges are repeated outwards."""
    height, width = size
    scale = min(height / image.height, width / image.width)
    scaled = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    pixels = np.asarray(image.resize(scaled, Resampling.BICUBIC))
    missing = height - scaled[1], width - scaled[0]
    padding = [(n // 2, n - n // 2) for n in missing] + [(0, 0)] * (pixels.ndim - 2)
    return Image.fromarray(np.pad(pixels, padding, mode="edge"))


def stretched(image: Image.Image, size: Size) -> Image.Image:
    """The whole image, bicubic, each side by a scale of its own."""
    height, width = size
    return image.resize((width, height), Resampling.BICUBIC)


FITS: dict[str, Resize] = {"crop": box_bicubic, "pad": padded, "stretch": stretched}
"""Values of config.data.fit."""


def _without_thin_ends(image: Image.Image, size: Size) -> Image.Image:
    """The middle of an image much longer or higher than the size, see `THIN`: the rest, enlarged
    with it, could take gigabytes.
    """
    height, width = size
    longest = max(1, THIN * image.height * width // height)
    highest = max(1, THIN * image.width * height // width)
    return _middle(image, min(image.width, longest), min(image.height, highest))


def _middle(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


# --- sources ---


class ArrayImages:
    """An array (N, H, W) or (N, H, W, C) in memory or memory-mapped: uint8, or any other with
    `values`.
    """

    found = ""

    def __init__(
        self,
        array: np.ndarray,
        shape: Shape | None = None,
        resize: Resize = box_bicubic,
        labels: np.ndarray | None = None,
        values: Values | None = None,
        classes: tuple[str, ...] = (),
    ) -> None:
        """shape: None for images as they are; grey ones become colour and back; values: None for
        an array as images are stored here. Raises ValueError for other numbers of channels.
        """
        # Pillow wants grey images without the last axis of (N, H, W, 1).
        self._array = array[..., 0] if array.ndim == 4 and array.shape[-1] == 1 else array
        self.stored_shape = channels_first(self._array[0]).shape
        self.shape = shape or self.stored_shape
        channels = self.stored_shape[0], self.shape[0]
        if channels[0] != channels[1] and set(channels) != {1, 3}:
            holds = f"{array.dtype} {array.shape}"
            raise ValueError(f"holds {holds}: {channels[0]} channels, not {channels[1]}")
        self._rows = np.arange(len(array))
        self._resize, self._values = resize, values
        self.dtype = array.dtype if values is None else values.dtype
        self.labels, self.classes = labels, classes
        self.on_disk = isinstance(array, np.memmap)

    def part(self, indices: np.ndarray) -> Self:
        """The images of these indices, in their order."""
        part = copy(self)
        part._rows = self._rows[indices]
        if self.labels is not None:
            part.labels = self.labels[indices]
        return part

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> np.ndarray:
        pixels = np.asarray(self._array[self._rows[i]])
        as_stored = channels_first(pixels)
        if self._values is not None:
            try:
                return _fit_values(as_stored, self.shape, self._resize, self._values)
            except ValueError as error:
                raise UnreadableImage(self.name(i), error) from None
        if as_stored.shape == self.shape:
            return as_stored
        if self.shape[0] in (1, 3):
            return fit(Image.fromarray(pixels), self.shape, self._resize)
        return _fit_each(map(Image.fromarray, as_stored), self.shape, self._resize)

    def name(self, i: int) -> str:
        return f"image {self._rows[i]}"

    def version(self) -> str:
        rows = self._rows.tobytes()
        if isinstance(self._array, np.memmap):
            file = Path(str(self._array.filename))
            return files_version([file], self.shape, rows, *_named(self._resize, self._values))
        stored = zlib.crc32(np.ascontiguousarray(self._array).data)
        return files_version([], self.shape, rows, stored, *_named(self._resize, self._values))


class FolderImages:
    """Image files, or frames of them, named by `paths` relative to `root`, decoded when asked
    for.
    """

    found = ""
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()

    def __init__(
        self,
        root: Path,
        paths: Sequence[str],
        shape: Shape,
        resize: Resize = box_bicubic,
        values: Values | None = None,
    ) -> None:
        """values: None for v / 255 of 8 bits. Raises ValueError for other than 1 to 4 channels."""
        _require_mode(shape)
        self._root, self.paths, self.shape, self._resize = root, paths, shape, resize
        self._values = values
        self.dtype = EIGHT_BIT if values is None else values.dtype

    def part(self, indices: np.ndarray) -> Self:
        """The images of these indices, in their order."""
        part = copy(self)
        part.paths = [self.paths[i] for i in indices]
        if self.labels is not None:
            part.labels = self.labels[indices]
        return part

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> np.ndarray:
        with opened_frame(self._root, self.paths[i]) as image:
            return fit(image, self.shape, self._resize, self._values)

    def name(self, i: int) -> str:
        return printable(self.paths[i])

    def version(self) -> str:
        files = (self._root / file_and_frame(path)[0] for path in self.paths)
        settings = _named(self._resize, self._values)
        if self.labels is not None:  # they may be in a table
            settings = [*settings, str(labels_crc32(self))]
        return files_version(files, self.shape, self.paths, *settings)


class LsunImages:
    """One class of LSUN, such as `church_outdoor_train_lmdb`: an LMDB of encoded images, in the
    order of their keys.

    torchvision.datasets.LSUN would unpickle, and so execute, a file `_cache_...` in the working
    directory. Raises lmdb.Error if `folder` is not an LMDB, or a damaged one.
    """

    dtype = EIGHT_BIT
    found = ""
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()

    def __init__(self, folder: Path, shape: Shape, resize: Resize = bilinear) -> None:
        _require_mode(shape)
        self.shape, self._resize = shape, resize
        self._folder = str(folder.resolve())
        environment = _lmdb_environment(self._folder)
        size = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        # Reading beyond the end of a memory map would kill the process.
        if (folder / "data.mdb").stat().st_size < size:
            raise lmdb.Error(f"data.mdb is incomplete: it should have at least {size:,} bytes")
        with environment.begin() as transaction:
            self._keys = list(transaction.cursor().iternext(keys=True, values=False))

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, i: int) -> np.ndarray:
        try:
            with _lmdb_environment(self._folder).begin() as transaction:
                encoded = transaction.get(self._keys[i], b"")
        except lmdb.Error as error:
            raise UnreadableImage(self.name(i), error) from error
        with opened_image(io.BytesIO(encoded), self.name(i)) as image:
            return fit(image, self.shape, self._resize)

    def name(self, i: int) -> str:
        return printable(self._keys[i].decode("utf-8", "backslashreplace"))

    def version(self) -> str:
        file = Path(self._folder, "data.mdb")
        return files_version([file], self.shape, *_named(self._resize, None))


def _require_mode(shape: Shape) -> None:
    if shape[0] not in MODES:
        raise ValueError(f"image files have 1 to 4 channels, not {shape[0]}: use an array (.npy)")


def _named(resize: Resize, values: Values | None) -> list[str]:
    """What a version says of them: nothing of the release's ways, as in earlier versions."""
    names = [resize.__name__] if resize in (padded, stretched) else []
    return names if values is None else [*names, str(values)]


@functools.cache
def _lmdb_environment(folder: str) -> lmdb.Environment:
    """The one environment of `folder` in this process: LMDB refuses to open a database twice."""
    return lmdb.open(
        folder, readonly=True, lock=False, create=False, readahead=False, meminit=False
    )


def list_images(root: Path) -> list[str]:
    """Paths of all image files below `root`, relative to it with forward slashes, sorted; hidden
    names are left out.

    Links are followed, and every folder is read once, by its own name rather than a link's.
    Warnings say what is left out. Raises OSError if a folder cannot be listed.
    """
    images: list[str] = []
    others: Counter[str] = Counter()
    seen: set[Path] = set()
    repeated: list[Path] = []
    waiting = deque([root])  # links at the end
    while waiting:
        folder = waiting.popleft()
        if folder.resolve() in seen:
            repeated.append(folder)
            continue
        seen.add(folder.resolve())
        for path in sorted(folder.iterdir()):
            # Hidden files are mostly not images, whatever their suffix: macOS leaves
            # "._photo.jpg" beside each photo.jpg.
            if path.name.startswith("."):
                continue
            suffix = path.suffix.lower()
            if path.is_dir() and path.is_symlink():
                waiting.append(path)
            elif path.is_dir():
                waiting.appendleft(path)
            elif suffix in IMAGE_SUFFIXES:
                images.append(path.relative_to(root).as_posix())
            else:
                others[suffix or "without suffix"] += 1
    if repeated:
        link = printable(repeated[0].relative_to(root))
        warn_once(
            f"{root}: {len(repeated)} links lead to folders that are read anyway, and are left "
            f"out, such as {link}"
        )
    if others:
        kinds = ", ".join(f"{count} {printable(suffix)}" for suffix, count in others.most_common(4))
        warn_once(
            f"{root}: {others.total()} files are left out, as their suffixes are not of images "
            f"that are read: {kinds}"
        )
    return sorted(images)


# --- decoding ---


def _or_passed_over(
    read: Callable[[PngStream, int, int], bytes],
) -> Callable[[PngStream, int, int], bytes]:
    """A reader of PNG's chunks of text or profiles that passes over what is too large, as nothing
    here needs it."""

    def chunk(stream: PngStream, pos: int, length: int) -> bytes:
        with contextlib.suppress(ValueError):
            if stream.text_memory <= MAX_TEXT_MEMORY:
                return read(stream, pos, length)
        assert stream.fp is not None
        stream.fp.seek(pos)
        return stream.fp.read(length)

    return chunk


for _name in ("chunk_iCCP", "chunk_iTXt", "chunk_tEXt", "chunk_zTXt"):
    setattr(PngStream, _name, _or_passed_over(getattr(PngStream, _name)))


@contextlib.contextmanager
def opened_image(file: BinaryIO | Path, name: str) -> Iterator[Image.Image]:
    """The first image in an encoded file.

    Raises UnreadableImage for whatever goes wrong, also in the context's body.
    """
    try:
        with Image.open(file, formats=IMAGE_FORMATS) as image:
            yield image
    except MemoryError:
        raise  # no fault of the image: skipping it would change the data from run to run
    except UnidentifiedImageError as error:  # which names the file once more
        raise UnreadableImage(name, "no image, or damaged") from error
    # Damaged files make Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error.
    except Exception as error:
        raise UnreadableImage(name, one_line(error) or type(error).__name__) from error


def file_and_frame(name: str) -> tuple[str, int]:
    """The path of an image's file, and which of its frames or pages it is: "a.tif[3]" is the
    fourth of a.tif.
    """
    match = FRAME.fullmatch(name)
    return (match[1], int(match[2])) if match else (name, 0)


@contextlib.contextmanager
def opened_frame(root: Path, name: str) -> Iterator[Image.Image]:
    """The image below `root` that `file_and_frame` names. Raises as `opened_image`."""
    path, frame = file_and_frame(name)
    with opened_image(root / path, printable(name)) as image:
        if frame:
            image.seek(frame)
        yield image


def num_frames(image: Image.Image) -> int:
    """Pages of a stack or frames of an animation; one of a photograph with others beside it."""
    return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def all_frames(root: Path, paths: Iterable[str]) -> list[str]:
    """The names of all frames of these files, see `file_and_frame`."""
    names = []
    for path in paths:
        count = 1
        if path.lower().endswith(WITH_FRAMES):
            with contextlib.suppress(UnreadableImage), opened_image(root / path, path) as image:
                count = num_frames(image)
        names += [path] if count == 1 else [f"{path}[{i}]" for i in range(count)]
    return names


def fit(
    image: Image.Image,
    shape: Shape,
    resize: Resize = box_bicubic,
    values: Values | None = None,
) -> np.ndarray:
    """Any Pillow image as (C, H, W) = `shape`: upright, grey or RGB, resized, in uint8 or, by
    `values`, in their type.

    Transparency is a channel of its own with 2 or 4 channels, and over white with 1 or 3. Raises
    ValueError for more than 8 bits without `values`, and for what is not in their range.
    """
    if values is not None:
        return _fit_values(numbers_of(image, shape[0]), shape, resize, values)
    if is_deep(image):
        raise ValueError(f"values of more than 8 bits, where {VALUES} says nothing of them")
    image = _in_mode(image, shape[0])
    if shape[0] in (2, 4):
        return _fit_each(image.split(), shape, resize)
    return channels_first(np.asarray(resize(image, shape[1:])))


def is_deep(image: Image.Image) -> bool:
    """Whether its pixels are of 16 bits or more."""
    return image.mode == "F" or image.mode.startswith("I")


def numbers_of(image: Image.Image, channels: int) -> np.ndarray:
    """The numbers in an image, upright, in the type in which they are stored: (C, H, W), grey or,
    of 8 bits, of so many channels.
    """
    image = ImageOps.exif_transpose(image) if is_deep(image) else _in_mode(image, channels)
    return channels_first(np.asarray(image))


def _in_mode(image: Image.Image, channels: int) -> Image.Image:
    """Upright, in 8 bits, of so many channels, for 1 and 3 laid over white."""
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data and channels in (1, 3):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(MODES[channels])


def _fit_values(numbers: np.ndarray, shape: Shape, resize: Resize, values: Values) -> np.ndarray:
    planes = with_channels(values.unit(numbers), shape[0])
    if planes.shape != shape:
        planes = _fit_each(map(Image.fromarray, planes), shape, resize)
    return values.stored(planes)


def _fit_each(channels: Iterable[Image.Image], shape: Shape, resize: Resize) -> np.ndarray:
    """Grey images, each resized for itself: as RGBA Pillow would weight colours by transparency."""
    return np.stack([np.asarray(resize(channel, shape[1:])) for channel in channels])


def channels_first(pixels: np.ndarray) -> np.ndarray:
    """(H, W) -> (1, H, W) or (H, W, C) -> (C, H, W), as a view."""
    return pixels[np.newaxis] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
