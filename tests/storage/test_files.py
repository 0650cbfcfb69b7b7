"""Files on whatever file system, and written by several processes at once."""

import errno
import fcntl
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from scripts.storage.files import ABANDONED_SECONDS, atomic_write, exclusive
from tests.conftest import bad_input


def write_often(path: Path, text: str) -> None:
    """Write a file of many times the same letter, half of it at a time, with renames that take as
    long as on a network.
    """
    replace = Path.replace

    def slowly(source: Path, target: Path) -> Path:
        time.sleep(0.01)
        return replace(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", slowly)
        for _ in range(20):
            with atomic_write(path, durable=False) as temporary, temporary.open("w") as file:
                file.write(text * 5000)
                file.flush()
                time.sleep(0.001)
                file.write(text * 5000)


def test_two_processes_write_the_same_file(tmp_path: Path) -> None:
    """Neither fails, and none renames what the other has half written."""
    path = tmp_path / "scores.npz"
    with ProcessPoolExecutor(2, get_context("fork")) as pool:
        writers = [pool.submit(write_often, path, letter) for letter in "ab"]
        while not all(writer.done() for writer in writers):
            if path.exists():
                assert path.read_text() in ("a" * 10000, "b" * 10000)
    for writer in writers:
        writer.result()
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_deleted_once_it_is_old(tmp_path: Path) -> None:
    """By the next write in the directory; what another process is writing now stays."""
    old, new, other = (
        tmp_path / name for name in (".a.0123abcd.partial.pth", ".a.89efabcd.partial.pth", ".b.png")
    )
    for file in (old, new, other):
        file.touch()
    for file in (old, other):
        os.utime(file, (0, time.time() - ABANDONED_SECONDS - 1))
    with atomic_write(tmp_path / "a.pth") as temporary:
        temporary.touch()
    assert sorted(tmp_path.iterdir()) == sorted([new, other, tmp_path / "a.pth"])


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES])
def test_a_file_system_that_cannot_sync_directories(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does what it can; that the contents are safe is still a promise."""
    fsync, refused = os.fsync, OSError(code, os.strerror(code))

    def of_files(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").resolve().is_dir():
            raise refused
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", of_files)
    with atomic_write(tmp_path / "config.json") as temporary:
        temporary.write_text("{}")
    assert (tmp_path / "config.json").read_text() == "{}"

    def of_nothing(_: int) -> None:
        raise refused

    monkeypatch.setattr(os, "fsync", of_nothing)
    with (
        pytest.raises(OSError, match=r"config\.json"),
        atomic_write(tmp_path / "config.json") as temporary,
    ):
        temporary.write_text("new")
    assert (tmp_path / "config.json").read_text() == "{}"


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EINVAL])
def test_a_file_system_without_locks(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line says that nobody watches; the work is done."""

    def refuse(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    done = []
    for _ in range(2):
        with exclusive(tmp_path, "taken"):
            done.append(1)
    assert done == [1, 1]
    assert capsys.readouterr().err.count(f"warning: {tmp_path}: no locks on this file system") == 1


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EACCES])
def test_a_lock_that_is_taken(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with bad_input("taken"), exclusive(tmp_path, "taken"):
        pass
