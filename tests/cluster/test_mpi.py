"""Two processes under Open MPI's mpirun: the weights of torchrun's, and how they end. (MPICH's:
tests/runtime.)
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.storage.checkpoint import meta_path, read
from tests.cluster.jobs import TRAIN, Job, assert_same
from tests.cluster.machines import Network
from tests.images import save_images

Start = Callable[..., Job]
Measured = Callable[[str, float], None]
OPEN_MPI = ["/usr/bin/mpirun.openmpi", "--allow-run-as-root", "--oversubscribe", "-n", "2"]
MPICH = [str(Path(sys.executable).parent / "mpirun"), "-n", "2"]
"""That of the wheel in requirements.txt."""


def mpirun(network: Network, *arguments: object) -> list[str]:
    """Two processes on node0."""
    return network.machines[0].command(*OPEN_MPI, *arguments)


def interrupt(network: Network, number: int) -> None:
    """A signal to mpirun itself."""
    os.kill(network.machines[0].pids("mpirun.openmpi")[0], number)


@pytest.mark.parametrize(
    "grace",
    [(), pytest.param(("--mca", "odls_base_sigkill_timeout", "5"), marks=pytest.mark.by_hand)],
    ids=["", "grace"],
)
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.by_hand)]
)
def test_signal_to_mpirun(
    number: signal.Signals,
    grace: tuple[str, ...],
    network: Network,
    start: Start,
    tmp_path: Path,
    measured: Measured,
) -> None:
    job = start(
        mpirun(network, *grace, "python", *TRAIN, tmp_path, "--config.training.n_iters=4000")
    )
    job.prints("step 25/")
    interrupt(network, number)
    seconds = job.ends()
    saved = "SIGTERM: saved at step" in job.output
    measured(
        f"Open MPI {' '.join(grace)}, {number.name} to mpirun: ended, {saved=}, code "
        f"{job.process.returncode}",
        seconds,
    )
    step = read(meta_path(tmp_path))["step"]
    assert step >= 25 if saved else step == 20
    assert saved or not grace


def test_kill(
    network: Network,
    start: Start,
    undisturbed: Callable[[int], Path],
    tmp_path: Path,
    measured: Measured,
) -> None:
    """kill -9 of a process ends the other; the same command then goes on, to the weights of
    torchrun's processes.
    """
    job = start(mpirun(network, "python", *TRAIN, tmp_path))
    job.prints("step 25/")
    os.kill(network.machines[0].training()[-1], signal.SIGKILL)
    measured("Open MPI, kill -9 of a process: mpirun has ended", job.ends())
    assert job.process.returncode != 0
    start(mpirun(network, "python", *TRAIN, tmp_path)).succeeds()
    assert_same(tmp_path, undisturbed(2))


@pytest.mark.by_hand
def test_exception(network: Network, start: Start, tmp_path: Path, measured: Measured) -> None:
    save_images(tmp_path / "folder", [f"{i}.png" for i in range(60)])
    job = start(
        mpirun(network, "python", "-m", "tests.runtime.together", tmp_path, "run", "exception")
    )
    job.prints("RuntimeError: a deliberate exception")
    measured("Open MPI, an exception in a process: mpirun has ended", job.ends())
    assert job.process.returncode != 0


@pytest.mark.parametrize(("launcher", "theirs"), [(OPEN_MPI, "mpich"), (MPICH, "openmpi")])
def test_mpi4py_of_another_mpi(
    launcher: list[str], theirs: str, network: Network, start: Start, tmp_path: Path
) -> None:
    """One line that names both."""
    libraries = {
        "mpich": str(Path(sys.executable).parents[1] / "lib/libmpi.so.12"),
        "openmpi": "libmpi.so.40",
    }
    job = start(
        network.machines[0].command(*launcher, "python", *TRAIN, tmp_path / "run"),
        MPI4PY_LIBMPI=libraries[theirs],
    )
    job.ends()
    names = ["Open MPI", "MPICH"][:: 1 if launcher is OPEN_MPI else -1]
    (line,) = (line for line in job.output.splitlines() if "error: " in line)
    assert f"error: this mpirun is {names[0]}'s, but mpi4py has another library ({names[1]}" in line
    assert job.process.returncode != 0
    assert not (tmp_path / "run").exists()
