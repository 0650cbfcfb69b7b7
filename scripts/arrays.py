"""Archives of arrays (.npz), read without running anything in them and without filling the memory."""

import zipfile
from pathlib import Path

import numpy as np

SUSPICIOUS_RATIO = 200
"""Arrays of measured numbers or images are compressed to a fiftieth at best, zeros to a thousandth."""
SUSPICIOUS_SIZE = 2**28
"""Bytes; what unpacks to less does no harm."""


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz by name. Pickled objects are refused.

    Raises ValueError in one line for anything that is not such a file, is damaged, or unpacks to far more than its size;
    OSError if it cannot be opened.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > max(SUSPICIOUS_SIZE, SUSPICIOUS_RATIO * path.stat().st_size):
            raise ValueError(f"{path.stat().st_size} bytes that unpack to {unpacked}, which no honest archive does")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: _array(name, arrays[name]) for name in arrays.files}
    except OSError:
        raise
    except Exception as error:  # zip, zlib and NumPy each say "damaged" in their own way
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


def _array(name: str, value: object) -> np.ndarray:
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{name} is not an array")  # NumPy gives the bytes of what is not a .npy
    return value
