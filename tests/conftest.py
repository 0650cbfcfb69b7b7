"""Fixtures and commands that several test files share."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError

import pytest
import torch
from hypothesis import settings

from scripts.config.paths import ROOT
from scripts.errors import UserError
from tests.golden import SETTINGS, Golden, load_golden
from tests.images import save_waves
from tests.tiny import tiny_config

if TYPE_CHECKING:
    from tests.training.runs import TinyRun

if "ATEN_CPU_CAPABILITY" in os.environ:
    # PyTorch looks at the processor there and not at this: fused attention in bfloat16 fails where
    # there is AMX.
    torch.backends.cuda.enable_flash_sdp(False)

# Timings depend on the machine, and a suite that guards a landing must not fail by chance.
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=60)
settings.register_profile(
    "long", deadline=None, max_examples=3000
)  # by hand: HYPOTHESIS_PROFILE=long pytest tests
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))


@pytest.fixture(scope="session", params=sorted(SETTINGS))
def golden(request: pytest.FixtureRequest) -> Golden:
    """Each golden file in turn."""
    return load_golden(request.param)


@pytest.fixture(scope="module", autouse=True)
def no_videos(request: pytest.FixtureRequest) -> Iterator[None]:
    """Empty files in their place, as each finished training starts an encoder; tests/sampling and
    commands make real ones.
    """
    with pytest.MonkeyPatch.context() as patch:
        if request.path.parent.name in ("evaluation", "runtime", "storage", "tools", "training"):
            patch.setattr("scripts.sampling.output.save_mp4", lambda path, frames: path.touch())
        yield


def command(*args: object, cwd: Path | str = ROOT) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments, in the directory `cwd`."""
    line = [sys.executable, *map(str, args)]
    return subprocess.run(line, capture_output=True, text=True, cwd=cwd, timeout=240, check=False)


def error_line(result: subprocess.CompletedProcess[str]) -> str:
    """The one line that bad input gets; nothing before it, no traceback, an exit code that is not
    0.
    """
    assert (result.returncode, result.stdout) == (2, ""), result.stdout + result.stderr
    (line,) = (line for line in result.stderr.splitlines() if not line.startswith("warning: "))
    assert line.startswith("error: ")
    return line


@contextmanager
def bad_input(pattern: str = ".") -> Iterator[pytest.ExceptionInfo[UserError]]:
    """The body gets the error of bad input: one line, in which the pattern is found."""
    with pytest.raises(UserError, match=pattern) as caught:
        yield caught
    assert "\n" not in str(caught.value)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads fail at once."""

    def refuse(*_: object, **__: object) -> None:
        raise URLError("no network in tests")

    for name in ("urllib.request.urlopen", "torch.hub.urlopen", "socket.getaddrinfo"):
        monkeypatch.setattr(name, refuse)


@pytest.fixture(scope="session")
def tiny_array(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty 8x8 grey images with some structure, as a .npy file."""
    return save_waves(tmp_path_factory.mktemp("array") / "waves.npy", 8, 8)


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run of `tiny_config`, to be read only."""
    from scripts.training.loop import train

    workdir = tmp_path_factory.mktemp("trained")
    assert train(tiny_config(), workdir) == 0
    return workdir


@pytest.fixture
def tiny_run(tiny_array: Path, tmp_path: Path) -> "TinyRun":
    """A run on `tiny_array` that is yet to begin."""
    from tests.training.runs import TinyRun

    return TinyRun(tiny_array, tmp_path / "run")


@pytest.fixture(scope="session")
def undisturbed(tiny_array: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The end of a run on `tiny_array` that nothing interrupted."""
    from tests.training.runs import TinyRun

    run = TinyRun(tiny_array, tmp_path_factory.mktemp("undisturbed"))
    run.finish()
    return run.state()
