"""The job scripts of docs/ on a SLURM of two nodes, each a machine of its own."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from scripts.config.paths import ROOT
from scripts.storage.checkpoint import meta_path, read
from scripts.storage.files import read_json_lines
from tests.cluster.jobs import ENVIRONMENT, TRAIN, Job, assert_same, wait_until
from tests.cluster.machines import Network
from tests.training.runs import metrics_with

Measured = Callable[[str, float], None]
TINY = ["--config", "tests/cluster/tiny.py"]
SMALL = ["--ntasks-per-node=1", "--cpus-per-task=1"]
"""Of what the job scripts ask for, the nodes here have less."""


class Slurm:
    """A controller on node0 and a daemon on each of two nodes."""

    def __init__(self, network: Network, directory: Path) -> None:
        self.network, self.directory, self.jobs = network, directory, list[Job]()
        config = directory / "slurm.conf"
        (directory / "gres.conf").write_text(f"Name=gpu File={directory}/gpu[0-3]\n")
        for i in range(4):
            (directory / f"gpu{i}").touch()
        template = (ROOT / "tests/cluster/slurm.conf").read_text()
        config.write_text(template.replace("@DIR@", str(directory)).replace("@GRACE@", "60"))
        (directory / "state").mkdir()
        key = directory / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self.environment = {"SLURM_CONF": str(config)}
        files = [
            f"--{name}={directory}/munge.{name[:3]}"
            for name in ("key-file", "pid-file", "log-file", "seed-file")
        ]
        self._start(0, "munged", "--foreground", "--force", f"--socket={directory}/munge", *files)
        wait_until((directory / "munge").exists, lambda: "munged")
        self._start(0, "slurmctld", "-D")
        for i in range(2):
            self._start(i, "slurmd", "-D", "-N", f"node{i}")
        idle = ("sinfo", "--noheader", "--partition=main", "--states=idle", "--format=%D")
        wait_until(
            lambda: self.command(*idle, check=False) == "2",
            lambda: "\n".join(job.output for job in self.jobs),
            60,
        )

    def _start(self, i: int, *command: str) -> None:
        log = self.directory / f"{command[0]}{i}.log"
        self.jobs.append(Job(self.network.machines[i].command(*command), log, **self.environment))

    def command(self, *command: object, check: bool = True) -> str:
        """What a command of SLURM prints on node0."""
        line = self.network.machines[0].command(*command)
        environment = {**ENVIRONMENT, **self.environment}
        result = subprocess.run(
            line, capture_output=True, text=True, cwd=ROOT, env=environment, check=False
        )
        assert result.returncode == 0 or not check, result.stderr
        return result.stdout.strip()

    def submit(self, *arguments: object) -> "SlurmJob":
        """Submit a job script."""
        log = f"--output={self.directory}/%A_%a.out"
        return SlurmJob(self, self.command("sbatch", "--parsable", log, *arguments))

    def training(self, workdir: Path) -> "SlurmJob":
        """Submit docs/train.sbatch."""
        return self.submit(*SMALL, "docs/train.sbatch", workdir, *TINY)

    @contextmanager
    def paused(self, seconds: float = 2.0) -> Iterator[None]:
        """All training stands still while the context lasts, or SLURM wants it to continue, and
        `seconds` longer.
        """
        pids = [pid for machine in self.network.machines for pid in machine.training()]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
        time.sleep(seconds)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        """End its daemons."""
        for job in reversed(self.jobs):
            job.kill()


class SlurmJob:
    """A job of one task of an array, or of no array."""

    def __init__(self, slurm: Slurm, number: str, task: int | None = None) -> None:
        self.slurm, self.number = slurm, number if task is None else f"{number}_{task}"
        self.log = slurm.directory / f"{number}_{4294967294 if task is None else task}.out"

    @property
    def output(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def value(self, name: str) -> str:
        """One of its properties, as scontrol shows them."""
        shown = self.slurm.command("scontrol", "show", "job", self.number)
        return re.findall(rf"\b{name}=(\S*)", shown)[0]

    def state(self) -> str:
        """Its state, and what it has printed."""
        return f"{self.value('JobState')} {self.output}"

    def prints(self, text: str) -> float:
        """Wait until it has printed `text`."""
        return wait_until(lambda: text in self.output, self.state)

    def becomes(self, state: str) -> float:
        """Wait until it is in that state: COMPLETED, FAILED, CANCELLED, PENDING."""
        return wait_until(lambda: self.value("JobState") == state, self.state)


@pytest.fixture(scope="module")
def slurm(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    slurm = Slurm(network, tmp_path_factory.mktemp("slurm"))
    yield slurm
    slurm.close()


def saved_step(workdir: Path) -> int:
    return int(read(meta_path(workdir))["step"])


def resumed_at(workdir: Path) -> list[int]:
    """The steps at which a run has gone on."""
    events = metrics_with("event", workdir)
    return [row["step"] for row in events if row["event"] == "resumed"]


@pytest.mark.parametrize(
    "command",
    [
        "scancel --batch --signal=USR1",
        "sbatch --partition=urgent --nodes=2 --exclusive --wrap=true --comment",
        "scancel",
        pytest.param("scontrol requeue", marks=pytest.mark.by_hand),
    ],
    ids=["time is nearly up", "a more urgent job", "cancelled", "requeued"],
)
def test_stopped(
    command: str,
    slurm: Slurm,
    undisturbed: Callable[[int], Path],
    tmp_path: Path,
    measured: Measured,
) -> None:
    """Saved, within GraceTime of a more urgent job; then back in the queue, and on to the weights
    of a run that nobody disturbed. A cancelled job stays cancelled.
    """
    job = slurm.training(tmp_path)
    job.prints("step 25/")
    with slurm.paused(10 if "urgent" in command else 2):
        slurm.command(*command.split(), job.number)
    measured(f"SLURM, {command}: saved", job.prints("SIGTERM: saved at step"))
    if command == "scancel":
        job.becomes("CANCELLED")
        time.sleep(8)  # longer than requeued jobs wait
        assert job.value("JobState") == "CANCELLED"
        assert saved_step(tmp_path) >= 25
        return
    job.prints("finished at step 60")
    job.becomes("COMPLETED")
    assert_same(tmp_path, undisturbed(2))
    (step,) = resumed_at(tmp_path)
    assert step >= 25


def test_kill(slurm: Slurm, network: Network, tmp_path: Path, measured: Measured) -> None:
    """kill -9 of one task ends the job."""
    job = slurm.training(tmp_path)
    job.prints("step 25/")
    os.kill(network.machines[1].training()[-1], signal.SIGKILL)
    measured("SLURM, kill -9 of one task: the job has ended", job.becomes("FAILED"))
    assert saved_step(tmp_path) == 20


def test_signal_before_anything_is_saved(slurm: Slurm, tmp_path: Path) -> None:
    """As if --time were shorter than the signal's margin: not requeued, which would never end."""
    job = slurm.training(tmp_path)
    wait_until(slurm.network.machines[0].training, lambda: job.output)
    slurm.command("scancel", "--batch", "--signal=USR1", job.number)
    job.becomes("FAILED")
    assert "error: stopped before anything was saved, so not requeued" in job.output
    assert job.value("Restarts") == "0"


def test_study(slurm: Slurm, tmp_path: Path) -> None:
    """An array of two seeds: a run directory and scores for each; one that is stopped continues."""
    number = slurm.submit("--cpus-per-task=1", "docs/study.sbatch", tmp_path, *TINY).number
    jobs = [SlurmJob(slurm, number, task) for task in (1, 2)]
    second = jobs[1]
    second.prints("step 25/")
    with slurm.paused():
        slurm.command("scancel", "--batch", "--signal=USR1", second.number)
    for job in jobs:
        job.prints("scores appended")
        job.becomes("COMPLETED")
    scores = []
    for seed in (1, 2):
        workdir = tmp_path / f"seed_{seed}"
        assert saved_step(workdir) == 60
        rows = read_json_lines(workdir / "evaluation" / "results.jsonl")
        scores += [row["value"] for row in rows if row["score"] == "BPD"]
        assert len(resumed_at(workdir)) == seed - 1
    assert len(set(scores)) == 2


@pytest.mark.by_hand
def test_srun_in_an_allocation(
    slurm: Slurm, undisturbed: Callable[[int], Path], tmp_path: Path
) -> None:
    """As typed in a shell that salloc gave."""
    line = ["salloc", "--nodes=2", "--ntasks-per-node=1", "bash", "-c"]
    srun = "MASTER_ADDR=node0 srun --kill-on-bad-exit=1 python"
    output = slurm.command(*line, f"{srun} {' '.join(TRAIN)} {tmp_path}")
    assert "processes    2" in output
    assert_same(tmp_path, undisturbed(2))
