"""The torchrun lines of docs/cluster.md on several machines: the results of one, and what happens
when one fails.
"""

import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.storage.files import read_json_lines
from tests.cluster.jobs import TRAIN, Job, assert_same, wait_until
from tests.cluster.machines import Network

Start = Callable[..., Job]
Measured = Callable[[str, float], None]


def torchrun(
    size: int, i: int, *script: object, address: str = "node0", restarts: int = 0
) -> list[str]:
    """The line for machine `i` of `size`."""
    where = [f"--node_rank={i}", f"--master_addr={address}", "--master_port=29500"]
    if restarts:
        where = [
            f"--max-restarts={restarts}",
            "--rdzv_backend=c10d",
            f"--rdzv_endpoint={address}:29500",
            "--rdzv_id=1",
        ]
    return ["torchrun", f"--nnodes={size}", "--nproc_per_node=1", *where, *map(str, script)]


def everywhere(
    network: Network, start: Start, size: int, *script: object, restarts: int = 0
) -> list[Job]:
    """The same command on each of `size` machines."""
    lines = (torchrun(size, i, *script, restarts=restarts) for i in range(size))
    environment = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} if restarts else {}
    return [
        start(machine.command(*line), **environment)
        for machine, line in zip(network.machines, lines, strict=False)
    ]


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.by_hand)])
def test_weights_are_those_of_one_machine(
    size: int, network: Network, start: Start, undisturbed: Callable[[int], Path], tmp_path: Path
) -> None:
    for job in everywhere(network, start, size, *TRAIN, tmp_path / "run"):
        job.succeeds()
    assert_same(tmp_path / "run", undisturbed(size))
    (started,) = (
        row for row in read_json_lines(tmp_path / "run" / "metrics.jsonl") if "event" in row
    )
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
        start(
            network.machines[0].command(
                "torchrun", f"--nproc_per_node={size}", *command, tmp_path / f"one-{name}"
            )
        ).succeeds()
    images = sorted(path.name for path in (tmp_path / "one-images").glob("*.png"))
    assert len(images) == 13
    for name in images:
        assert (tmp_path / "several-images" / name).read_bytes() == (
            tmp_path / "one-images" / name
        ).read_bytes()
    rows = read_json_lines(workdir / "evaluation" / "results.jsonl")
    for score in ("ELBO", "BPD", "FID"):
        several, one = (row for row in rows if row["score"] == score)
        assert one["value"] == several["value"]
        assert one["num_images"] == several["num_images"]


@pytest.mark.parametrize(
    "how",
    [
        "process",
        *(pytest.param(how, marks=pytest.mark.by_hand) for how in ("machine 1", "machine 0")),
    ],
)
def test_kill(
    how: str,
    network: Network,
    start: Start,
    undisturbed: Callable[[int], Path],
    tmp_path: Path,
    measured: Measured,
) -> None:
    """kill -9 of machine 1's training process, or of everything on a machine; the same command then
    goes on.
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
    assert re.search(
        r"^error: process . on node. lost another one: .*\[10\.77\.0\.1.\].* the same command",
        survivor.output,
        re.M,
    )
    assert 'File "' not in survivor.output.partition("error: process")[0], "no traceback of ours"
    if how != "process":
        network.restart(int(how[-1]))
    for job in everywhere(network, start, 2, *TRAIN, tmp_path / "run"):
        job.succeeds()
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
    """--max-restarts: a killed process comes back by itself, and all go on from the last save.

    When process 0 is killed, the other launcher is told so before its own process fails, and does
    not count that as a restart.
    """
    jobs = everywhere(network, start, 2, *TRAIN, tmp_path / "run", restarts=2)

    def outputs() -> list[str]:
        return [job.output for job in jobs]

    wait_until(
        lambda: any("step 25/" in output for output in outputs()), lambda: "".join(outputs())
    )
    process_0 = ["step 25/" in output for output in outputs()].index(
        True
    )  # the c10d rendezvous chooses its machine
    os.kill(
        network.machines[process_0 if which == 0 else 1 - process_0].training()[-1], signal.SIGKILL
    )
    killed = time.monotonic()
    wait_until(
        lambda: any("continuing from step 20" in output for output in outputs()),
        lambda: "".join(outputs()),
    )
    measured(
        f"kill -9 of process {which} with --max-restarts=2: training goes on",
        time.monotonic() - killed,
    )
    for job in jobs:
        job.succeeds()
    assert_same(tmp_path / "run", undisturbed(2))


@pytest.mark.by_hand
def test_a_link_that_is_cut_for_20_seconds(
    network: Network,
    start: Start,
    undisturbed: Callable[[int], Path],
    tmp_path: Path,
    measured: Measured,
) -> None:
    jobs = everywhere(network, start, 2, *TRAIN, tmp_path / "run")
    jobs[0].prints("step 25/")
    network.cut(1)
    time.sleep(20)
    before = jobs[0].output.count("\nstep ")
    network.mend(1)
    mended = time.monotonic()
    jobs[0].prints(f"step {before + 2}/")
    measured("link cut for 20 s: the next step after it is mended", time.monotonic() - mended)
    for job in jobs:
        job.succeeds()
    assert_same(tmp_path / "run", undisturbed(2))


@pytest.mark.by_hand
@pytest.mark.parametrize("retries", [15, 8])
def test_a_link_that_is_cut_for_good(
    retries: int,
    network: Network,
    start: Start,
    undisturbed: Callable[[int], Path],
    tmp_path: Path,
    measured: Measured,
) -> None:
    """retries: the kernel's net.ipv4.tcp_retries2, whose default is 15."""
    for machine in network.machines:
        machine.run("bash", "-c", f"echo {retries} > /proc/sys/net/ipv4/tcp_retries2")
    jobs = everywhere(network, start, 2, *TRAIN, tmp_path / "run")
    jobs[0].prints("step 25/")
    network.cut(1)
    cut = time.monotonic()
    lost: dict[int, float] = {}
    while any(job.process.poll() is None for job in jobs):
        for i, job in enumerate(jobs):
            if i not in lost and "lost another one" in job.output:
                lost[i] = time.monotonic() - cut
                measured(
                    f"link cut for good, tcp_retries2={retries}: machine {i}'s training has ended",
                    lost[i],
                )
        assert time.monotonic() - cut < 3000
        time.sleep(0.1)
    measured(
        f"link cut for good, tcp_retries2={retries}: both launchers have ended",
        time.monotonic() - cut,
    )
    assert len(lost) == 2
    network.mend(1)
    for job in everywhere(network, start, 2, *TRAIN, tmp_path / "run"):
        job.succeeds()
    assert_same(tmp_path / "run", undisturbed(2))


@pytest.mark.by_hand
def test_a_machine_that_comes_late(
    network: Network, start: Start, undisturbed: Callable[[int], Path], tmp_path: Path
) -> None:
    jobs = [start(network.machines[0].command(*torchrun(2, 0, *TRAIN, tmp_path / "run")))]
    time.sleep(20)
    jobs.append(start(network.machines[1].command(*torchrun(2, 1, *TRAIN, tmp_path / "run"))))
    for job in jobs:
        job.succeeds()
    assert_same(tmp_path / "run", undisturbed(2))


@pytest.mark.by_hand
@pytest.mark.parametrize("fault", ["machine 1 never comes", "wrong address", "port in use"])
def test_machines_that_do_not_meet(
    fault: str, network: Network, start: Start, tmp_path: Path, measured: Measured
) -> None:
    """torchrun's own errors: the last line says which address, port or number of machines."""
    if fault == "port in use":
        first = everywhere(
            network, start, 2, *TRAIN, tmp_path / "first", "--config.training.n_iters=400"
        )
        first[0].prints("step 5/")
    address = "node2" if fault == "wrong address" else "node0"
    size = 1 if fault == "machine 1 never comes" else 2
    started = time.monotonic()
    jobs = [
        start(
            network.machines[i].command(*torchrun(2, i, *TRAIN, tmp_path / "run", address=address))
        )
        for i in range(size)
    ]
    for i, job in enumerate(jobs):
        job.ends(2000)
        said = [line for line in job.output.splitlines() if "Error: " in line][-1][-150:]
        measured(f"{fault}: machine {i}'s launcher has ended ({said})", time.monotonic() - started)
        assert job.process.returncode != 0
    assert not (tmp_path / "run").exists()
    if fault == "port in use":
        for job in first:
            job.succeeds()
