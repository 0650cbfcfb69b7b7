"""Machines, what one of them computes with several processes, and the times that were measured."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.jobs import TRAIN, Job
from tests.cluster.machines import Network

TIMES: list[str] = []


@pytest.fixture
def measured() -> Callable[[str, float], None]:
    """Called with what took how many seconds, which is printed at the end."""
    return lambda what, seconds: TIMES.append(f"{seconds:7.1f} s  {what}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The times, for docs/cluster.md."""
    if TIMES:
        terminalreporter.section("measured")
        terminalreporter.write("\n".join(TIMES) + "\n")


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """Three machines."""
    network = Network(3, tmp_path_factory.mktemp("network"))
    yield network
    network.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Starts a command; none is left when the test ends."""
    jobs: list[Job] = []

    def started(command: list[str], **environment: str) -> Job:
        jobs.append(Job(command, tmp_path / f"log{len(jobs)}", **environment))
        return jobs[-1]

    yield started
    for job in jobs:
        job.kill()


@pytest.fixture(scope="session")
def undisturbed(
    network: Network, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Path]:
    """The run directory of a training by so many processes on one machine."""
    place = tmp_path_factory.mktemp("undisturbed")

    def run_directory(size: int) -> Path:
        workdir = place / str(size)
        if not workdir.exists():
            command = network.machines[0].command(
                "torchrun", f"--nproc_per_node={size}", *TRAIN, workdir
            )
            job = Job(command, place / f"log{size}")
            try:
                job.succeeds()
            finally:
                job.kill()
        return workdir

    return run_directory
