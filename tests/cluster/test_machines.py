"""The torchrun lines of docs/cluster.md on several machines: the results of one, and what happens
when one fails.
"""

import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.storage.files import read_json_lines
from tests.cluster.jobs import TRAIN, Job, assert_same, wait_until
from tests.cluster.machines import Network
from tests.training.runs import metrics_with

Start = Callable[..., Job]
Measured = Callable[[str, float], None]


RESTARTING = "--max-restarts=2 --rdzv_backend=c10d --rdzv_endpoint=node0:29500 --rdzv_id=1"


def everywhere(
    network: Network, start: Start, size: int, *script: object, restarting: bool = False
) -> list[Job]:
    """The same command on each of `size` machines."""
    jobs = []
    for i in range(size):
        where = ["--master_addr=node0", "--master_port=29500", f"--node_rank={i}"]
        if restarting:
            where = RESTARTING.split()
        line = ["torchrun", f"--nnodes={size}", "--nproc_per_node=1", *where, *script]
        environment = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} if restarting else {}
        jobs.append(start(network.machines[i].command(*line), **environment))
    return jobs


def train_everywhere(network: Network, start: Start, size: int, workdir: Path) -> None:
    """Train on so many machines to the end."""
    for job in everywhere(network, start, size, *TRAIN, workdir):
        job.succeeds()


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.by_hand)])
def test_weights_are_those_of_one_machine(
    size: int, network: Network, start: Start, undisturbed: Callable[[int], Path], tmp_path: Path
) -> None:
    train_everywhere(network, start, size, tmp_path / "run")
    assert_same(tmp_path / "run", undisturbed(size))
    (started,) = metrics_with("event", tmp_path / "run")
    assert started["world_size"] == size


@pytest.mark.by_hand
@pytest.mark.parametrize("size", [2, 3])
def test_samples_and_scores_are_those_of_one_machine(
    size: int, network: Network, start: Start, undisturbed: Callable[[int], Path], tmp_path: Path
) -> None:
    """PNG files to the byte, the bound and FID to the last digit."""
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed(size), workdir)
    fid = ("--mode=fid", "--feature_extractor=classifier", "--num_gen=130", "--batch_size=20")
    commands = {
        "images": ("sample.py", "--num_samples=13", "--batch_size=3", "--export_dir"),
        "bound": ("evaluate.py", "--mode=elbo", "--num_images=13", "--out"),
        "scores": ("evaluate.py", *fid, "--out"),
    }
    for name, (script, *flags) in commands.items():
        command = (script, "--workdir", workdir, *flags)
        for job in everywhere(network, start, size, *command, tmp_path / f"several-{name}"):
            job.succeeds()
        line = ("torchrun", f"--nproc_per_node={size}", *command, tmp_path / f"one-{name}")
        start(network.machines[0].command(*line)).succeeds()
    images, others = (
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.png")}
        for name in ("one-images", "several-images")
    )
    assert len(images) == 13
    assert images == others
    rows = read_json_lines(workdir / "evaluation" / "results.jsonl")
    for score in ("ELBO", "BPD", "FID"):
        several, one = (row for row in rows if row["score"] == score)
        assert one["value"] == several["value"]
        assert one["num_images"] == several["num_images"]


BY_HAND = [pytest.param(f"machine {i}", marks=pytest.mark.by_hand) for i in (1, 0)]


@pytest.mark.parametrize("how", ["process", *BY_HAND])
def test_kill(
    how: str,
    network: Network,
    start: Start,
    undisturbed: Callable[[int], Path],
    tmp_path: Path,
    measured: Measured,
) -> None:
    """kill -9 of machine 1's training process, or of everything on a machine; the same command then
    continues.
    """
    jobs = everywhere(network, start, 2, *TRAIN, tmp_path / "run")
    jobs[0].prints("step 25/")
    if how == "process":
        os.kill(network.machines[1].training()[-1], signal.SIGKILL)
    else:
        network.machines[int(how[-1])].kill_all()
    seconds = max(job.ends() for job in jobs)
    measured(f"kill -9, {how}: both launchers have ended", seconds)
    assert all(job.process.returncode != 0 for job in jobs)
    survivor = jobs[how == "machine 0"]
    lost = r"^error: process . on node. lost another one: .*\[10\.77\.0\.1.\].* the same command"
    assert re.search(lost, survivor.output, re.M)
    assert 'File "' not in survivor.output.partition("error: process")[0], "no traceback of ours"
    if how != "process":
        network.restart(int(how[-1]))
    train_everywhere(network, start, 2, tmp_path / "run")
    assert_same(tmp_path / "run", undisturbed(2))


@pytest.mark.parametrize("which", [0, pytest.param(1, marks=pytest.mark.by_hand)])
def test_restarts(
    which: int,
    network: Network,
    start: Start,
    undisturbed: Callable[[int], Path],
    tmp_path: Path,
    measured: Measured,
) -> None:
    """--max-restarts: a killed process comes back by itself, and all continue from the last save.

    When process 0 is killed, the other launcher is told so before its own process fails, and does
    not count that as a restart.
    """
    jobs = everywhere(network, start, 2, *TRAIN, tmp_path / "run", restarting=True)

    def that_print(text: str) -> list[int]:
        return [i for i, job in enumerate(jobs) if text in job.output]

    def outputs() -> str:
        return "".join(job.output for job in jobs)

    wait_until(lambda: that_print("step 25/"), outputs)
    (process_0,) = that_print("step 25/")  # the c10d rendezvous chooses its machine
    machine = network.machines[process_0 if which == 0 else 1 - process_0]
    os.kill(machine.training()[-1], signal.SIGKILL)
    seconds = wait_until(lambda: that_print("continuing from step 20"), outputs)
    measured(f"kill -9 of process {which} with --max-restarts=2: training continues", seconds)
    for job in jobs:
        job.succeeds()
    assert_same(tmp_path / "run", undisturbed(2))
