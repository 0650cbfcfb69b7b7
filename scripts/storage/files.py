"""Files, written atomically and read without running anything in them."""

import fcntl
import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from scripts.errors import UserError, one_line
from scripts.runtime import distributed
from scripts.runtime.progress import warn_once

ABANDONED_SECONDS = 3600
"""A temporary file that nobody wrote to for so long was left by a process that was killed."""


@contextmanager
def atomic_write(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path` for the body to write; it is renamed to `path` at the
    end.

    After an error in the body the old file is untouched and the temporary one deleted. Processes
    that write the same file at once have a temporary one each. `durable` waits until the file is on
    disk, so that it survives a power cut, and deletes temporary files that killed processes left
    beside it.
    """
    # Encoders choose the format by the suffix.
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.partial{path.suffix}")
    try:
        yield temporary
        if durable:
            sync(temporary)
        temporary.replace(path)
        if durable:
            sync(path.parent)
            for abandoned in path.parent.glob(".*.partial*"):
                with suppress(OSError):  # another process deletes it, or it is another user's
                    if time.time() - abandoned.stat().st_mtime > ABANDONED_SECONDS:
                        abandoned.unlink()
    except OSError as error:
        # A full disk does not say which file was being written.
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file of text as `atomic_write` does."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Wait until a file's contents are on disk, or a directory's entries, if its file system can do
    that.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        if not path.is_dir():
            raise


def lock(file: IO[str], wait: bool = False) -> bool:
    """Take the lock on a file open for writing, until it is closed. Returns whether it was free;
    with `wait` it will be.

    Where the file system has no locks, everybody gets it, with a warning.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        advice = "let only one command at a time write there"
        warn_once(
            f"{Path(file.name).parent}: no locks on this file system ({error.strerror}); {advice}"
        )
    return True


@contextmanager
def exclusive(directory: Path, refusal: str) -> Iterator[None]:
    """Keep the body to one job at a time, by a lock in `directory` that ends with process 0,
    however that comes about.

    Raises UserError with the message `refusal` if another job has it.
    """
    with (directory / ".lock").open("w") as file:
        if distributed.is_main() and not lock(file):
            raise UserError(refusal)
        yield


def make_directory(path: Path, flag: str) -> Path:
    """Create a directory to write to, parents included.

    Raises UserError naming `flag` if that cannot be.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise UserError(
            f"{flag}={path}: cannot write there ({error.strerror}); choose a writable directory"
        ) from None
    return path


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Return all arrays of an .npz file by name, without pickles.

    Raises ValueError in one line if it is damaged, or OSError.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except OSError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy each say "damaged" in their own way
        raise ValueError(one_line(error) or type(error).__name__) from None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a .jsonl file; none if there is no such file."""
    rows: list[dict[str, Any]] = []
    if not path.exists():
        return rows
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # half a line, from a process that was killed while writing it
        if isinstance(row, dict):
            rows.append(row)
    return rows
