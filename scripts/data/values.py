"""What the numbers of images mean: those of a stated range become [0, 1], stored in 8, 16 or 32
bits.
"""

from dataclasses import dataclass, field

import numpy as np
from ml_collections import ConfigDict

from scripts.errors import UserError
from scripts.runtime.progress import warn_once

TOP = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535, np.dtype(np.float32): 1}
"""What is stored for 1, by type; 0 is 0."""
EIGHT_BIT = np.dtype(np.uint8)
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)[:, None, None]
"""Weights of red, green and blue, of ITU-R 601."""
KEY = "config.data.value_range"
LITTLE = 0.25
"""Numbers that use less of the range than this are warned of."""


def as_uint8(pixels: np.ndarray) -> np.ndarray:
    """Return what is stored in any of the types of `TOP`, rounded to 8 bits."""
    if pixels.dtype == EIGHT_BIT:
        return pixels
    return np.rint(pixels * np.float32(255 / TOP[pixels.dtype])).astype(np.uint8)


def meaning_of_8_bits(data: ConfigDict) -> str:
    """Return what exported samples stand for, where the numbers in images, by config.data, are
    others.
    """
    if not data.value_range:
        return ""
    low, high = data.value_range
    return f", in 8 bits: 0 to 255 stand for {low:.9g} to {high:.9g}"


@dataclass(frozen=True)
class Values:
    """How numbers from `low` to `high` become [0, 1]: config.data.value_range and value_clip."""

    low: float
    high: float
    clip: bool
    dtype: np.dtype
    """In which they are stored, one of `TOP`."""

    def unit(self, numbers: np.ndarray) -> np.ndarray:
        """Numbers of any type as float32 in [0, 1]. Raises ValueError for those outside the range,
        unless they are clipped, and for what is not finite.
        """
        if not np.isfinite(numbers).all():
            raise ValueError("holds NaN or infinite values")
        least, most = float(numbers.min()), float(numbers.max())
        wrong = self.objection(least, most, numbers.dtype == EIGHT_BIT)
        if wrong:
            raise ValueError(wrong)
        unit = (numbers.astype(np.float64) - self.low) / (self.high - self.low)
        return unit.clip(0, 1).astype(np.float32)

    def objection(self, least: float, most: float, eight_bit: bool) -> str:
        """Why numbers from `least` to `most` cannot be of this range; empty if they can."""
        shown = f"{KEY} = {self.low:.9g}, {self.high:.9g}"
        if eight_bit and not 0 <= self.low < self.high <= 255:
            return f"has 8-bit values, where {shown} is of others: keep these apart"
        if self.clip or self.low <= least <= most <= self.high:
            return ""
        cut = "with config.data.value_clip = True they are cut"
        return f"values from {least:.9g} to {most:.9g} are not within {shown}; {cut}"

    def stored(self, unit: np.ndarray) -> np.ndarray:
        """Values about [0, 1], as resizing leaves them, clamped, in the type of storage."""
        top, unit = TOP[self.dtype], unit.clip(0, 1)
        return (np.rint(unit * top) if top > 1 else unit).astype(self.dtype)


def with_channels(planes: np.ndarray, channels: int) -> np.ndarray:
    """Values in [0, 1], (C, H, W), of so many channels: grey repeated, colours as luminance, and
    opaque where transparency is a channel of its own.
    """
    if len(planes) == channels:
        return planes
    if len(planes) == 3 and channels == 1:
        return (LUMINANCE * planes).sum(0, keepdims=True)
    colours = planes.repeat(3 if channels > 2 else 1, 0)
    return np.concatenate([colours, np.ones_like(planes)])[:channels]


@dataclass
class Found:
    """What was found in numbers that were looked at."""

    types: set[np.dtype] = field(default_factory=set)
    least: float = np.inf
    most: float = -np.inf
    outside: int = 0
    """How many are not within the range, of `count`."""
    count: int = 0
    not_finite: int = 0
    """Images with numbers that are not finite."""

    def add(self, numbers: np.ndarray, value_range: tuple[float, float]) -> None:
        """Look at one more image."""
        self.types.add(numbers.dtype.newbyteorder("="))
        finite = np.isfinite(numbers)
        if not finite.all():
            self.not_finite += 1
            numbers = numbers[finite]
        if numbers.size:
            self.least = min(self.least, float(numbers.min()))
            self.most = max(self.most, float(numbers.max()))
            low, high = value_range or (self.least, self.most)
            self.outside += int(np.count_nonzero((numbers < low) | (numbers > high)))
            self.count += numbers.size

    def values(self, data: ConfigDict, where: str, as_exported: bool = False) -> Values | None:
        """Return how these numbers become [0, 1] by `data`, config.data; None for v / 255 of 8
        bits.

        where: they were found, for messages; as_exported: those of 8 bits are 0 to 255 in any case.
        Raises UserError if the range has to be stated, or was
        stated for other numbers.
        """
        whole = as_exported or tuple(data.value_range) in ((), (0, 255))
        if not self.types or (self.types <= {EIGHT_BIT} and whole):
            return None
        if not self.count:
            raise UserError(f"{where}: all values are NaN or infinite")
        integers = all(each.kind in "bui" for each in self.types)
        if not data.value_range:
            kinds = ", ".join(sorted(map(str, self.types)))
            example = f"{self.least:.9g},{self.most + (self.least == self.most):.9g}"
            if self.least >= 0 and integers:
                example = f"0,{max(1, 2 ** int(self.most).bit_length() - 1)}"
            raise UserError(
                f"{KEY} = (): must say which numbers become 0 and 1: {where} has {kinds} from "
                f"{self.least:.9g} to {self.most:.9g}; such as --{KEY}={example}"
            )
        small = integers and all(each.itemsize <= 2 for each in self.types)
        dtype = np.dtype(np.uint16 if small else np.float32)
        low, high = data.value_range
        values = Values(low, high, data.value_clip, dtype)
        wrong = values.objection(self.least, self.most, EIGHT_BIT in self.types)
        if wrong:
            raise UserError(f"{where}: {wrong}")
        if self.most - self.least < LITTLE * (high - low):
            used = f"values from {self.least:.9g} to {self.most:.9g}"
            warn_once(f"{where}: {used} are little of {KEY} = {low:.9g}, {high:.9g}")
        return values

    def describe(self, values: Values | None) -> str:
        """In words, for a line about the images."""
        if values is None:
            return "8-bit values"
        text = f"values from {self.least:.9g} to {self.most:.9g}: {values.low:.9g} to "
        text += f"{values.high:.9g} become 0 to 1, kept in {values.dtype}"
        if self.outside:
            text += f"; {self.outside / self.count:.2%} of the values are cut"
        if self.not_finite:
            text += f"; {self.not_finite} images with NaN or infinite values are left out"
        return text
