"""Files: written atomically, read without running anything in them, and paths as users type them."""

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from scripts.errors import UserError, one_line
from scripts.runtime import distributed


@contextmanager
def atomic_write(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path` for the body to write; it is renamed to `path` at the end.

    After an error in the body the old file is untouched and the temporary one deleted. `durable` waits until the file is on
    disk, so that it survives a power cut.
    """
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")  # encoders choose the format by the suffix
    try:
        yield temporary
        if durable:
            sync(temporary)
        temporary.replace(path)
        if durable:
            sync(path.parent)
    except OSError as error:
        if error.filename is None and error.errno is not None:  # a full disk does not say which file was being written
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file's contents, or a directory's entries, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def exclusive(directory: Path, refusal: str) -> Iterator[None]:
    """Keep the body to one job at a time, by a lock in `directory` that ends with process 0, however that comes about.

    Raises UserError with the message `refusal` if another job has it.
    """
    with (directory / ".lock").open("w") as lock:
        try:
            if distributed.is_main():
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(refusal) from None
        yield


def make_directory(path: Path, flag: str) -> Path:
    """Create a directory to write to, parents included. Raises UserError naming `flag` if that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise UserError(f"{flag}={path}: cannot write there ({error.strerror}); choose a writable directory") from None
    return path


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file by name, without pickles. Raises ValueError in one line if it is damaged, or OSError."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except OSError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy each say "damaged" in their own way
        raise ValueError(one_line(error) or type(error).__name__) from None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl file; none if there is no such file."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # half a line, from a process that was killed while writing it
        if isinstance(row, dict):
            rows.append(row)
    return rows
