"""How images are decoded."""

import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from scripts.data import images
from scripts.data.datasets import load_images, open_images
from scripts.data.images import (
    FITS,
    ORIENTATION,
    ArrayImages,
    FolderImages,
    Resize,
    UnreadableImage,
    bilinear,
    box_bicubic,
    describe_change,
    fingerprint,
    identity,
    list_images,
)
from tests.images import data_config, decoded, encoded, random_pixels


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_every_kind_of_png_becomes_uint8_of_the_configured_shape(
    tmp_path: Path, mode: str, channels: int
) -> None:
    white = Image.new("RGBA", (7, 5), (255, 255, 255, 255)).convert(mode)
    pixels = decoded(tmp_path, white, channels=channels)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (channels, 4, 4)
    assert (pixels == 255).all()


def test_grey_is_repeated_and_rgb_is_weighted_by_luminance(tmp_path: Path) -> None:
    assert (decoded(tmp_path, Image.new("L", (4, 4), 77)) == 77).all()
    green = decoded(tmp_path, Image.new("RGB", (4, 4), (0, 255, 0)), channels=1)
    assert (green == 150).all()  # ITU-R 601: 0.587 * 255


@pytest.mark.parametrize("channels", [1, 3])
def test_transparency_is_laid_over_white(tmp_path: Path, channels: int) -> None:
    for opacity, grey in ((0, 255), (128, 127), (255, 0)):
        pixels = decoded(tmp_path, Image.new("RGBA", (4, 4), (0, 0, 0, opacity)), channels=channels)
        assert np.abs(pixels.astype(int) - grey).max() <= 1
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([255, 0, 0, 0, 0, 0])
    assert (decoded(tmp_path, palette, transparency=1, channels=channels) == 255).all()


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[:, :4] = 255  # bright on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise: bright at the top
    pixels = decoded(tmp_path, Image.fromarray(picture), ".jpg", size=8, exif=exif)
    assert pixels[:, :3].min() > 200
    assert pixels[:, 5:].max() < 50


LARGE = "x" * (3 << 20)


@pytest.mark.parametrize(
    ("texts", "text", "options"),
    [
        (1, "x" * (65 << 20), {}),
        (1, LARGE, {"zip": True}),
        (70, LARGE[: 1 << 20], {"zip": True}),
        (1, LARGE, {"zip": True, "lang": "en"}),
        (0, LARGE, {}),
    ],
)
def test_a_png_whose_text_or_profile_alone_is_too_large_is_readable(
    texts: int, text: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """As generators of images write their workflows; what comes after it is read, too."""
    info = PngInfo()
    for i in range(texts):
        add = info.add_itxt if "lang" in options else info.add_text
        add(f"workflow {i}", text, **options)
    profile = None if texts else text.encode()
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = np.zeros((8, 8), np.uint8)
    grey[:, :4] = 200
    image = Image.fromarray(grey)
    pixels = decoded(tmp_path, image, size=8, pnginfo=info, exif=exif, icc_profile=profile)
    assert (pixels[0] == grey.T).all()


NOISE = random_pixels(32, 32, 3)


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (b"", "no image, or damaged"),
        (b"<html>not found</html>", "no image, or damaged"),
        (encoded(NOISE)[:500], "truncated"),
        (encoded(np.full((4, 4), 0.5, np.float32), "TIFF"), "of more than 8 bits"),
        (encoded(np.full((4, 4), 1 << 20, np.int32), "TIFF"), "of more than 8 bits"),
        (encoded(np.zeros((100, 100), np.uint8)), "decompression bomb"),
        (b"P6 100000 100000 255\n", "exceeds limit"),  # said before anything is decoded
    ],
)
def test_damaged_foreign_and_huge_files_are_unreadable_by_name(
    contents: bytes, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.raises(UnreadableImage, match=rf"^image\.png: .*{reason}"):
        decoded(tmp_path, contents)
    with pytest.raises(UnreadableImage, match=r"^gone\.png: .*No such file"):
        FolderImages(tmp_path, ["gone.png"], (3, 4, 4))[0]


# --- resizing ---


@pytest.mark.parametrize(
    ("width", "height"), [(64, 96), (65, 99), (16, 16), (19, 16), (9, 12), (100, 33)]
)
def test_folders_and_arrays_are_resized_as_in_the_release(
    tmp_path: Path, width: int, height: int
) -> None:
    """Box halvings, bicubic, centre crop, written out with Pillow's calls."""
    array = random_pixels(height, width, 3)
    expected = Image.fromarray(array)
    while expected.width >= 32 and expected.height >= 32:
        expected = expected.resize(
            (expected.width // 2, expected.height // 2), Image.Resampling.BOX
        )
    ratio = 16 / min(expected.width, expected.height)
    expected = expected.resize(
        (round(expected.width * ratio), round(expected.height * ratio)), Image.Resampling.BICUBIC
    )
    pixels = np.array(expected)
    y, x = (pixels.shape[0] - 16) // 2, (pixels.shape[1] - 16) // 2
    pixels = pixels[y : y + 16, x : x + 16].transpose(2, 0, 1)
    np.testing.assert_array_equal(decoded(tmp_path, Image.fromarray(array), size=16), pixels)
    np.testing.assert_array_equal(ArrayImages(array[None], (3, 16, 16))[0], pixels)


# --- fingerprints ---


def test_a_fingerprint_tells_number_names_and_pixels_apart() -> None:
    array = random_pixels(100, 4, 4)
    other_pixels = array.copy()
    other_pixels[99] ^= 1
    sources = [
        ArrayImages(array),
        ArrayImages(other_pixels),
        ArrayImages(array[:99]),
        # The same pixels by other names.
        ArrayImages(np.roll(array, 1, 0)).part(np.roll(np.arange(100), -1)),
    ]
    prints = [fingerprint(source) for source in sources]
    assert prints[0] == fingerprint(ArrayImages(array.copy()))
    assert all(one != other for i, one in enumerate(prints) for other in prints[:i])
    assert prints[0]["names_crc32"] == prints[1]["names_crc32"]
    assert prints[0]["pixels_crc32"] == prints[3]["pixels_crc32"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([0, 1, 2, 3], "other pixels in 0 of 4 images: "),
        ([1, 0, 2, 3], "the same names in another order"),
        ([0, 1], "names: 2 gone, 0 new"),
        ([0, 1, 2, 3, 4], "names: 0 gone, 1 new, such as image 4"),
        ([9, 8, 7, 6, 0], "names: 3 gone, 4 new, such as image 9, image 8, image 7, ..."),
    ],
)
def test_what_has_changed(rows: list[int], message: str) -> None:
    before, now = (
        ArrayImages(np.zeros((10, 4, 4), np.uint8)).part(np.array(indices))
        for indices in (range(4), rows)
    )
    assert describe_change(now, identity(now)[1], identity(before)[1]) == message


# --- arrays ---


@pytest.mark.parametrize("shape", [(5, 6, 6), (5, 6, 6, 1), (5, 6, 6, 3), (5, 6, 6, 7)])
def test_array_images_come_back_as_stored_without_a_copy(shape: tuple[int, ...]) -> None:
    array = random_pixels(*shape)
    source = ArrayImages(array)
    assert np.shares_memory(source[2], array)
    expected = array[2].reshape(6, 6, -1).transpose(2, 0, 1)
    np.testing.assert_array_equal(source[2], expected)
    assert source.name(2) == "image 2"


def test_array_images_are_converted_when_size_or_channels_differ() -> None:
    grey = ArrayImages(np.full((3, 9, 6), 50, np.uint8), (3, 4, 4))
    assert grey.shape == grey[0].shape == (3, 4, 4)
    assert (grey[0] == 50).all()
    colour = ArrayImages(np.full((3, 4, 4, 3), [0, 255, 0], np.uint8), (1, 4, 4))
    assert (colour[0] == 150).all()


@pytest.mark.parametrize(("stored", "wanted"), [(4, 3), (2, 1), (3, 5)])
def test_other_numbers_of_channels_are_refused(stored: int, wanted: int) -> None:
    array = np.zeros((3, 4, 4, stored), np.uint8)
    with pytest.raises(ValueError, match=f": {stored} channels, not {wanted}"):
        ArrayImages(array, (wanted, 4, 4))


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_each_of_many_channels_is_resized_for_itself(channels: int) -> None:
    array = random_pixels(1, 20, 30, channels)
    resized = ArrayImages(array, (channels, 8, 12))[0]
    for i in range(channels):
        np.testing.assert_array_equal(resized[i], ArrayImages(array[..., i], (1, 8, 12))[0][0])


@pytest.mark.parametrize(("mode", "channels"), [("LA", 2), ("RGBA", 4)])
def test_transparency_is_a_channel_of_its_own(mode: str, channels: int, tmp_path: Path) -> None:
    """As it is stored, not over white; of a file without it is opaque."""
    pixels = random_pixels(4, 4, channels)
    found = decoded(tmp_path, Image.fromarray(pixels), channels=channels)
    np.testing.assert_array_equal(found, pixels.transpose(2, 0, 1))
    opaque = decoded(tmp_path, Image.new("RGB", (4, 4), (9, 9, 9)), channels=channels)
    assert (opaque[:-1] == 9).all()
    assert (opaque[-1] == 255).all()


def halves(width: int, height: int) -> Image.Image:
    """Black on the left, white on the right."""
    pixels = np.zeros((height, width), np.uint8)
    pixels[:, width // 2 :] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("resize", [box_bicubic, bilinear])
def test_a_crop_covers_the_rectangle(resize: Resize) -> None:
    """Of 60 x 40 pixels the middle 60 x 20 for 24 x 8, and the middle 20 x 40 for 8 x 16."""
    rows = np.arange(40, dtype=np.uint8).repeat(60).reshape(40, 60)
    wide = np.asarray(resize(Image.fromarray(rows), (8, 24))).astype(float)
    np.testing.assert_allclose(wide.mean(1), 10 + 2.5 * (np.arange(8) + 0.5) - 0.5, atol=0.75)
    columns = np.arange(60, dtype=np.uint8).repeat(40).reshape(60, 40).T
    high = np.asarray(resize(Image.fromarray(columns), (16, 8))).astype(float)
    np.testing.assert_allclose(high.mean(0), 20 + 2.5 * (np.arange(8) + 0.5) - 0.5, atol=0.75)


def test_padding_repeats_the_edges_of_the_whole_image() -> None:
    """Of 16 x 8 pixels for 8 x 8, then of 8 x 16 for 16 x 8: bars of 2 and 6 pixels."""
    wide = np.asarray(FITS["pad"](halves(16, 8), (8, 8)))
    assert (wide == wide[3]).all()
    assert (wide[0] < 128).sum() == 4
    high = np.asarray(FITS["pad"](halves(8, 16), (8, 16)))
    assert high.shape == (8, 16)
    assert (high[:, :6] == 0).all()
    assert (high[:, 10:] == 255).all()
    assert np.asarray(FITS["pad"](halves(1000, 1), (4, 4))).shape == (4, 4)


def test_stretching_keeps_the_whole_image() -> None:
    stretched = np.asarray(FITS["stretch"](halves(40, 8), (8, 10)))
    assert stretched.shape == (8, 10)
    assert (stretched[:, :4] < 10).all()
    assert (stretched[:, 6:] > 245).all()


@pytest.mark.parametrize(
    ("fit", "text"), [("crop", "cut off"), ("pad", "padding"), ("stretch", "stretched")]
)
def test_images_of_another_shape_are_counted(
    fit: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 24 x 8 pixels: 8 x 8 and, by its EXIF, 8 x 24 are far from that, 16 x 8 is not."""
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    halves(24, 8).save(tmp_path / "turned.png", exif=turned)
    for width in (24, 16, 8):
        halves(width, 8).save(tmp_path / f"{width}.png")
    data = data_config("folder", tmp_path, channels=1)
    data.image_size, data.fit = (8, 24), fit
    load_images(data, "train")
    line = f"{tmp_path}: of 4 files that were looked at 2 are of another shape"
    error = capsys.readouterr().err
    assert line in error
    assert text in error
    np.save(tmp_path / "array.npy", np.zeros((4, 8, 8), np.uint8))
    open_images(str(tmp_path / "array.npy"), "--init", (1, 8, 24), data)
    assert "4 images of 8 x 8 pixels are of another shape" in capsys.readouterr().err


def test_the_fit_tells_images_apart(tmp_path: Path) -> None:
    """By fingerprint and version, in folders and arrays."""
    pixels = random_pixels(3, 8, 12)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    names = [f"{i}.png" for i in range(3)]
    for sources in (
        [FolderImages(tmp_path, names, (1, 8, 8), resize) for resize in FITS.values()],
        [ArrayImages(pixels, (1, 8, 8), resize) for resize in FITS.values()],
    ):
        assert len({str(fingerprint(source)) for source in sources}) == len(FITS)
        assert len({source.version() for source in sources}) == len(FITS)


def test_of_a_thin_image_the_middle_is_taken() -> None:
    """A ramp of 4 x 400 pixels, for both ways of resizing: as of its middle, wherever that is cut
    out.
    """
    ramp = np.repeat((np.arange(400) // 2).astype(np.uint8)[None], 4, 0)
    for resize in (box_bicubic, bilinear):
        for pixels in (ramp, ramp.T):
            found = np.asarray(resize(Image.fromarray(pixels), (16, 16))).astype(int)
            assert found.shape == (16, 16)
            assert np.abs(found - 100).max() <= 2


def test_a_line_of_pixels_takes_no_gigabytes() -> None:
    """1 x 30,000 pixels at 256: whole, it would be resized to 256 x 7,680,000."""
    line = Image.fromarray(np.arange(30_000, dtype=np.uint32).astype(np.uint8)[:, None])
    tracemalloc.start()
    assert box_bicubic(line, (256, 256)).size == (256, 256)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_every_folder_is_read_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Links to a parent, to a sibling twice, and to a folder elsewhere; one line says what is left
    out.
    """
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for file in (root / "a" / "1.png", root / "b" / "2.jfif", elsewhere / "3.PNG"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (root / "a" / "up").symlink_to(root)
    (root / "0b").symlink_to(root / "b")
    (root / "c").symlink_to(elsewhere)
    (root / "d").symlink_to(elsewhere)
    assert list_images(root) == ["a/1.png", "b/2.jfif", "c/3.PNG"]
    assert "3 links lead to folders that are read anyway" in capsys.readouterr().err


def test_files_that_are_left_out_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("1.png", "2.HEIC", "3.heic", "labels.txt", ".hidden"):
        (tmp_path / name).touch()
    assert list_images(tmp_path) == ["1.png"]
    assert "3 files are left out" in (line := capsys.readouterr().err)
    assert "2 .heic, 1 .txt" in line


def rgb_png_of_16_bits(grey: np.ndarray) -> bytes:
    """Pillow writes 16 bits of grey only. grey: (H, W)."""
    header = struct.pack(">IIBBBBB", *grey.shape[::-1], 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in grey.repeat(3, -1).astype(">u2"))
    packed = b"\x89PNG\r\n\x1a\n"
    for name, x in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        packed += struct.pack(">I", len(x)) + name + x + struct.pack(">I", zlib.crc32(name + x))
    return packed


@pytest.mark.parametrize("bits", [12, 14, 16])
def test_few_levels_of_16_bits_are_said(
    bits: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of colours, of which 8 bits are read: in one line with counts, whichever command opens the
    folder; 8 bits beside it are nobody's concern.
    """
    pixels = (np.linspace(0, 1, 64).reshape(8, 8) * (2**bits - 1)).astype(np.uint16)
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(rgb_png_of_16_bits(pixels))
    Image.new("L", (8, 8), 3).save(tmp_path / "dark.png")
    (tmp_path / "damaged.png").write_bytes(b"no image")
    for split in ("train", "held_out"):
        found = load_images(data_config("folder", tmp_path), split).found
    assert "RGB in 16 bits, read in 8 (3), L (1)" in found
    open_images(str(tmp_path), "--init", (1, 8, 8))
    few = f"warning: {tmp_path}: of 5 files that were looked at 3 use few of their 16 bits"
    assert capsys.readouterr().err.count(few) == (bits < 16)


@pytest.mark.parametrize("suffix", [".tif", ".gif", ".webp", ".png"])
def test_pages_and_frames_that_are_not_read_are_said(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [Image.new("RGB", (8, 8), (60 * i, 0, 0)) for i in range(3)]
    frames[0].save(tmp_path / f"several{suffix}", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / f"one{suffix}")
    load_images(data_config("folder", tmp_path), "train")
    line = "1 have several pages or frames: only the first is read (data.frames)"
    looked = f"{tmp_path}: of 2 files that were looked at"
    assert capsys.readouterr().err == f"warning: {looked} {line}\n"
    open_images(str(tmp_path / f"several{suffix}"), "--init", (3, 8, 8))
    assert "of 1 files that were looked at 1 have several pages" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("suffix", "name"), [(".avif", "AVIF"), (".jfif", "JPEG"), (".webp", "WEBP")]
)
def test_further_formats(suffix: str, name: str, tmp_path: Path) -> None:
    if name not in images.IMAGE_FORMATS:
        pytest.skip(f"Pillow without {name}")
    file = tmp_path / f"1{suffix}"
    Image.new("RGB", (9, 9), (200, 200, 200)).save(file, name)
    assert list_images(tmp_path) == [file.name]
    assert np.abs(FolderImages(tmp_path, [file.name], (1, 8, 8))[0].astype(int) - 200).max() <= 3
