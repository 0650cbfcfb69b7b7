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

Start = Callable[..., Job]
Measured = Callable[[str, float], None]
OPEN_MPI = ["/usr/bin/mpirun.openmpi", "--allow-run-as-root", "--oversubscribe", "-n", "2"]
MPICH = [str(Path(sys.executable).parent / "mpirun"), "-n", "2"]
"""That of the wheel in requirements.txt."""


def mpirun(network: Network, *arguments: object) -> list[str]:
    """Two processes on node0."""
    return network.machines[0].command(*OPEN_MPI, *arguments)


@pytest.mark.parametrize(
    ("number", "grace"),
    [
        (signal.SIGTERM, ""),
        pytest.param(signal.SIGINT, "", marks=pytest.mark.by_hand),
        pytest.param(
            signal.SIGTERM, "--mca odls_base_sigkill_timeout 5", marks=pytest.mark.by_hand
        ),
    ],
)
def test_signal_to_mpirun(
    number: signal.Signals,
    grace: str,
    network: Network,
    start: Start,
    tmp_path: Path,
    measured: Measured,
) -> None:
    training = ("python", *TRAIN, tmp_path, "--config.training.n_iters=4000")
    job = start(mpirun(network, *grace.split(), *training))
    job.prints("step 25/")
    os.kill(network.machines[0].pids("mpirun.openmpi")[0], number)
    seconds = job.ends()
    saved = "SIGTERM: saved at step" in job.output
    measured(f"Open MPI {grace}, {number.name} to mpirun: ended, {saved=}", seconds)
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
    """kill -9 of a process ends the other; the same command then continues, to the weights of
    torchrun's processes.
    """
    job = start(mpirun(network, "python", *TRAIN, tmp_path))
    job.prints("step 25/")
    os.kill(network.machines[0].training()[-1], signal.SIGKILL)
    measured("Open MPI, kill -9 of a process: mpirun has ended", job.ends())
    assert job.process.returncode != 0
    start(mpirun(network, "python", *TRAIN, tmp_path)).succeeds()
    assert_same(tmp_path, undisturbed(2))


@pytest.mark.parametrize(
    ("launcher", "library", "message"),
    [
        (
            OPEN_MPI,
            str(Path(sys.executable).parents[1] / "lib/libmpi.so.12"),
            "error: this mpirun is Open MPI's, but mpi4py has another library (MPICH",
        ),
        (
            MPICH,
            "libmpi.so.40",
            "error: this mpirun is MPICH's, but mpi4py has another library (Open MPI",
        ),
    ],
)
def test_mpi4py_of_another_mpi(
    launcher: list[str],
    library: str,
    message: str,
    network: Network,
    start: Start,
    tmp_path: Path,
) -> None:
    """One line that names both."""
    command = network.machines[0].command(*launcher, "python", *TRAIN, tmp_path / "run")
    job = start(command, MPI4PY_LIBMPI=library)
    job.ends()
    (line,) = (line for line in job.output.splitlines() if "error: " in line)
    assert message in line
    assert job.process.returncode != 0
    assert not (tmp_path / "run").exists()
