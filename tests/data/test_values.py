"""Values other than 8 bits: a stated range becomes [0, 1]; what cannot be right is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from scripts.config.load import to_json
from scripts.config.resolve import FREE, refuse_differences, validate
from scripts.data.datasets import load_images, load_whole, open_images
from scripts.data.images import ArrayImages, UnreadableImage, box_bicubic, fingerprint
from scripts.data.loader import OrderedBatches, to_unit_range
from scripts.data.packs import write_pack
from scripts.data.values import Values, as_uint8
from tests.conftest import bad_input
from tests.images import data_config, encoded, names_of
from tests.tiny import tiny_config

RAMP = np.linspace(0, 1, 64).reshape(8, 8)
EIGHT_BITS, TWELVE_BITS = (255 * RAMP).astype(np.uint8), (4095 * RAMP).astype(np.uint16)


def as_pgm(numbers: np.ndarray) -> bytes:
    """A grey map of 16 bits."""
    return b"P5 8 8 65535\n" + numbers.astype(">u2").tobytes()


def as_tiff(numbers: np.ndarray) -> bytes:
    return encoded(numbers, "TIFF")


as_png = encoded


def write(place: Path, kind: Any, numbers: np.ndarray, n: int = 3) -> ConfigDict:
    """The same image n times, in files or as one array; the data section that reads it."""
    if kind is np.save:
        np.save(place / "array.npy", np.stack([numbers] * n))
        return data_config("npy", place / "array.npy", channels=1)
    suffix = {as_pgm: "pgm", as_tiff: "tif", as_png: "png"}[kind]
    for i in range(n):
        (place / f"{i}.{suffix}").write_bytes(kind(numbers))
    return data_config("folder", place, channels=1)


def unit(data: ConfigDict) -> np.ndarray:
    """The first training image in [0, 1], as batches have it."""
    (batch, *_) = OrderedBatches(load_images(data, "train"), 1, 0, False)
    return batch.images[0].numpy()


@pytest.mark.parametrize(
    ("kind", "numbers", "value_range", "stored", "example"),
    [
        (as_png, (RAMP * 4095).astype(np.uint16), (0, 4095), "uint16", "0,4095"),
        (as_tiff, (RAMP * 4000).astype(">u2"), (0, 4095), "uint16", "0,4095"),
        (as_pgm, (RAMP * 65535).astype(np.uint16), (0, 65535), "float32", "0,65535"),
        (as_tiff, (RAMP * 1000 - 500).astype(np.int32), (-500, 500), "float32", "-500,500"),
        (as_tiff, (RAMP * 2 - 1).astype(np.float32), (-1.0, 1.0), "float32", "-1,1"),
        (np.save, RAMP * 2, (0, 2), "float32", "0,2"),
        (np.save, RAMP > 0.5, (0, 1), "uint16", "0,1"),
        (np.save, (RAMP * 3000 - 1000).astype(np.int16), (-1024, 3071), "uint16", "-1000,2000"),
        (np.save, (RAMP * 1e6).astype(np.int32), (0, 1_000_000), "float32", "0,1048575"),
    ],
)
def test_a_stated_range_becomes_0_to_1(
    kind: Any,
    numbers: np.ndarray,
    value_range: tuple[float, float],
    stored: str,
    example: str,
    tmp_path: Path,
) -> None:
    """Without one an error says what was found; and with one resuming needs the same."""
    data = write(tmp_path, kind, numbers)
    with bad_input(rf"such as --config\.data\.value_range={example}$"):
        load_images(data, "train")
    data.value_range = value_range
    low, high = value_range
    expected = (numbers.astype(float) - low) / (high - low)
    np.testing.assert_allclose(unit(data)[0], expected, atol=1e-5)
    assert load_images(data, "train").dtype == stored


def test_eight_bits_of_another_range(tmp_path: Path) -> None:
    """As of scikit-learn's digits; an exported picture is 0 to 255 all the same."""
    data = write(tmp_path, np.save, (RAMP * 16).astype(np.uint8))
    assert load_images(data, "train").dtype == np.uint8
    assert unit(data).max() == np.float32(16 / 255)
    data.value_range = (0, 255)
    assert load_images(data, "train").dtype == np.uint8
    data.value_range = (0, 16)
    assert unit(data).max() == 1
    exported = open_images(data.path, "--init", (1, 8, 8), data)
    assert to_unit_range(exported[0]).max() == np.float32(16 / 255)
    data.held_out_path, data.path = data.path, str(tmp_path / "other.npy")
    assert load_images(data, "held_out")[0].max() == 65535


@pytest.mark.parametrize(
    ("kind", "numbers", "changes", "message"),
    [
        (
            as_png,
            TWELVE_BITS,
            {"value_range": (0, 1000)},
            "from 0 to 4095 are not with",
        ),
        (
            as_png,
            EIGHT_BITS,
            {"value_range": (0, 4095)},
            "has 8-bit values, where",
        ),
        (
            np.save,
            EIGHT_BITS,
            {"value_range": (0, 100)},
            "with config.data.value_clip",
        ),
        (np.save, np.full((8, 8), np.nan), {}, "all values are NaN or infinite"),
        (
            np.save,
            RAMP,
            {"value_range": (0, 1), "uniform_dequantization": True},
            "uniform_dequantization = True: must be False, as images are stored in float32",
        ),
    ],
)
def test_what_cannot_be_right(
    kind: Any, numbers: np.ndarray, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    data = write(tmp_path, kind, numbers)
    data.update(changes)
    with bad_input(message):
        load_images(data, "train")


def test_eight_and_sixteen_bits_in_one_folder(tmp_path: Path) -> None:
    """Neither is read as the other, whether they are looked at or not."""
    data = write(tmp_path, as_png, TWELVE_BITS, 300)
    (tmp_path / "1.png").write_bytes(as_png(EIGHT_BITS))  # not one of those looked at
    data.value_range = (0, 4095)
    source = load_whole(data)["all"]
    with pytest.raises(UnreadableImage, match=r"1\.png: has 8-bit values"):
        source[source.paths.index("1.png")]  # type: ignore[attr-defined]
    (tmp_path / "0.png").write_bytes(as_png(EIGHT_BITS))
    with bad_input("has 8-bit values"):
        load_images(data, "train")


def test_a_window_cuts_and_says_how_much(tmp_path: Path) -> None:
    """Of one image of three, 5 in 8 values are cut, before it is made smaller; NaN is left out, and
    said.
    """
    numbers = np.zeros((3, 8, 8), np.float32)
    numbers[1, :5], numbers[1, 5:], numbers[2, 0, 0] = -2000, 500, np.nan
    np.save(tmp_path / "array.npy", numbers)
    data = data_config("npy", tmp_path / "array.npy", channels=1)
    data.value_range, data.value_clip = (-1000, 1000), True
    source = load_whole(data)["all"]
    assert "20.94% of the values are cut; 1 images with NaN" in source.found  # 40 of 191
    assert (source[1][0, :5] == 0).all()
    assert (source[1][0, 5:] == 0.75).all()
    data.image_size = 4
    assert load_whole(data)["all"][1][0, :, 0].tolist() == [0, 0, 0.375, 0.75]
    data.image_size = 8
    with pytest.raises(UnreadableImage, match="image 2: holds NaN or infinite values"):
        source[2]


@pytest.mark.parametrize(
    ("fit", "channels", "words"),
    [
        ("crop", 3, "4 with transparency, over white; 40% of their pixels are cropped"),
        ("pad", 4, "4 with transparency, a channel of its own; 40% of what is read is padding"),
        ("stretch", 1, "4 with transparency, over white"),
    ],
)
def test_what_is_said_of_files(fit: str, channels: int, words: str, tmp_path: Path) -> None:
    """A palette and an alpha channel, of 16 x 8 and 8 x 12 pixels, for 8 x 8."""
    for i in range(4):
        Image.new("RGBA", (16, 8)).save(tmp_path / f"{i}.png")
        Image.new("L", (8, 12)).save(tmp_path / f"{i}.jpg")
        (tmp_path / f"{i}.tif").write_bytes(b"damaged")
    Image.new("P", (8, 12)).save(tmp_path / "0.png", transparency=0)
    data = data_config("folder", tmp_path, channels=channels)
    data.fit = fit
    sizes = "12 of 12 files looked at: 8 x 12 (5), 16 x 8 (3) pixels"
    modes = "L (4), RGBA (3), P (1), 8-bit values"
    assert load_images(data, "train").found == f"{sizes}; {modes}; 4 cannot be read; {words}"


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_resizing_and_channels_of_16_bits(channels: int, tmp_path: Path) -> None:
    """As in floating point, not in 8 bits; grey is repeated, and opaque."""
    numbers = np.random.default_rng(0).integers(4096, size=(20, 30), dtype=np.uint16)
    for i in range(2):
        Image.fromarray(numbers).save(tmp_path / f"{i}.png")
    data = data_config("folder", tmp_path, channels=channels)
    data.value_range = (0, 4095)
    expected = np.asarray(box_bicubic(Image.fromarray(numbers.astype(np.float32)), (8, 8))) / 4095
    found = unit(data)
    for plane in found[: channels - (channels in (2, 4))]:
        np.testing.assert_allclose(plane, expected.clip(0, 1), atol=1e-5)
    assert len(found) == channels
    assert channels in (1, 3) or (found[-1] == 1).all()


def test_a_range_that_is_hardly_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """12 bits in a range of 16 are nearly black."""
    data = write(tmp_path, as_png, TWELVE_BITS)
    data.value_range = (0, 65535)
    load_images(data, "train")
    line = "values from 0 to 4095 are little of config.data.value_range = 0, 65535"
    assert line in capsys.readouterr().err
    data.value_range = (0, 4095)
    load_images(data, "train")
    assert "little" not in capsys.readouterr().err


def test_luminance_of_deep_colours(tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", np.full((2, 8, 8, 3), [0.0, 2.0, 0.0]))
    data = data_config("npy", tmp_path / "array.npy", channels=1)
    data.value_range = (0, 2)
    np.testing.assert_allclose(unit(data), 0.587, atol=1e-6)


@pytest.mark.parametrize("kind", [as_png, as_tiff])
def test_packs_keep_the_type(kind: Any, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    numbers = TWELVE_BITS if kind is as_png else (4095 * RAMP).astype(np.float32)
    data = write(tmp_path / "images", kind, numbers, 12)
    data.value_range = (0, 4095)
    one = load_images(data, "train")
    write_pack(tmp_path / "pack", data, load_whole(data))
    data.path = str(tmp_path / "pack")
    other = load_images(data, "train")
    assert (other.dtype, fingerprint(other)) == (one.dtype, fingerprint(one))
    np.testing.assert_array_equal(other[0], one[0])
    data.value_range = (0, 5000)
    with bad_input(r"a pack with data.value_range = \[0, 4095\], not \[0, 50"):
        load_images(data, "train")


def test_all_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pages of a stack and frames of an animation, each under its own name, those of a file on one
    side of a split, also from a pack; by default the first, with a line.
    """
    (tmp_path / "images").mkdir()
    for i in range(6):
        frames = [Image.new("L", (8, 8), 40 * page + i) for page in range(1 + i % 4)]
        path = tmp_path / "images" / f"{i}.{'gif' if i % 2 else 'tif'}"
        frames[0].save(path, save_all=True, append_images=frames[1:])
    photographs = [Image.new("L", (8, 8), 9)] * 2  # of which the second is a preview
    path = tmp_path / "images" / "6.jpg"
    photographs[0].save(path, "MPO", save_all=True, append_images=photographs[1:])
    data = data_config("folder", tmp_path / "images", channels=1)
    assert names_of(load_whole(data)["all"])[:3] == ["0.tif", "1.gif", "2.tif"]
    assert "of 7 files that were looked at 4 have several pages" in capsys.readouterr().err
    data.frames = "all"
    source = load_whole(data)["all"]
    assert names_of(source)[:4] == ["0.tif", "1.gif[0]", "1.gif[1]", "2.tif[0]"]
    assert [int(source[i].mean()) for i in range(3, 6)] == [2, 42, 82]
    assert "only the first" not in capsys.readouterr().err
    sides = [names_of(load_images(data, split)) for split in ("train", "held_out")]
    files = [{name.partition("[")[0] for name in side} for side in sides]
    assert not files[0] & files[1]
    assert len(sides[0]) + len(sides[1]) == len(source) == 14
    write_pack(tmp_path / "pack", data, load_whole(data))
    data.path = str(tmp_path / "pack")
    assert [names_of(load_images(data, split)) for split in ("train", "held_out")] == sides


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__value_range": (5, 5)}, "two numbers, low < high"),
        ({"data__value_range": (0, 1, 2)}, "two numbers, low < high"),
        ({"data__value_range": (0, float("inf"))}, "two numbers, low < high"),
        ({"data__value_range": ("a", "b")}, "two numbers, low < high"),
        ({"data__value_clip": True}, r"value_clip = True: needs config\.data\.value_range"),
        ({"data__frames": "last"}, "'first', 'all'"),
    ],
)
def test_keys(changes: dict[str, Any], message: str) -> None:
    with bad_input(message):
        validate(tiny_config(**changes))


@pytest.mark.parametrize(
    "changes", [{"data__value_range": (0, 9)}, {"data__value_clip": True}, {"data__frames": "all"}]
)
def test_a_run_is_of_one_range(changes: dict[str, Any]) -> None:
    with bad_input(next(iter(changes)).replace("__", r"\.")):
        refuse_differences(to_json(tiny_config()), tiny_config(**changes), FREE, "it")


def test_the_range_tells_images_apart(tmp_path: Path) -> None:
    """By the version that records keep, in files, on a disk and in memory."""
    for kind in (as_png, np.save):
        data = write(tmp_path, kind, TWELVE_BITS)
        versions = set()
        for data.value_range in ((0, 4095), (0, 5000)):
            versions.add(load_images(data, "train").version())
        assert len(versions) == 2
    ranges = (Values(0, top, False, np.dtype(np.uint16)) for top in (4095, 5000))
    sources = [ArrayImages(TWELVE_BITS[None], values=values) for values in ranges]
    assert sources[0].version() != sources[1].version()


def test_types_of_storage() -> None:
    """All hold the same values in [0, 1], dequantised or not."""
    eight = np.arange(256, dtype=np.uint8)
    for same in (eight.astype(np.uint16) * 257, eight.astype(np.float32) / 255):
        np.testing.assert_array_equal(as_uint8(same), eight)
        for noise in (None, 0.5):
            expected = to_unit_range(eight, noise)
            np.testing.assert_allclose(to_unit_range(same, noise), expected, 1e-6)
