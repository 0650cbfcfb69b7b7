"""Several processes, started by torchrun and by mpirun on this machine: the same results as one,
and one end for all.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.config.paths import ROOT
from scripts.runtime import distributed
from scripts.storage.checkpoint import meta_path, read, write
from scripts.storage.files import read_json_lines
from scripts.training.loop import train
from tests.conftest import bad_input
from tests.runtime import together
from tests.tiny import TINY, tiny_config

MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
LAUNCHERS = {
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"],
    "mpirun": [str(MPIEXEC), "-n", "2", sys.executable],
}
NO_MPI = pytest.mark.skipif(
    MPIEXEC is None, reason="no MPI on this machine; pip install mpich brings one"
)


@contextmanager
def job(launcher: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    """Two processes in a group of their own, of which none is left afterwards."""
    with subprocess.Popen(
        [*LAUNCHERS[launcher], *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def output_of(launcher: str, *args: object) -> str:
    """What the processes of a job that ends well print."""
    with job(launcher, *args) as process:
        output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def metrics(workdir: Path, *names: str) -> dict[tuple[int, str], float]:
    """All values of a run with these names, by step and name."""
    rows = read_json_lines(workdir / "metrics.jsonl")
    return {
        (row["step"], name): value for row in rows for name, value in row.items() if name in names
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training and its evaluation by one process, `alone`."""
    place = tmp_path_factory.mktemp("together")
    (place / "folder").mkdir()
    rng = np.random.default_rng(0)
    for i in range(60):
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(
            place / "folder" / f"{i:02d}.png"
        )
    damaged = place / "folder" / "58.png"  # the second process's when images are read in order
    damaged.write_bytes(damaged.read_bytes()[:60])
    assert train(together.training_config(place), place / "alone") == 0
    contents = read(meta_path(place / "alone"))
    del contents["prior"]
    write(meta_path(place / together.WITHOUT_PRIOR), contents)
    together.evaluate(place, "alone")
    return place


@pytest.fixture(scope="module", params=["torchrun", pytest.param("mpirun", marks=NO_MPI)])
def launcher(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def output(launcher: str, place: Path) -> str:
    """What two processes print that do the same, in directories named after the launcher."""
    together.compute_features(place, place / f"{launcher}-features", 3)  # begun by one process
    return output_of(launcher, "-m", "tests.runtime.together", place, launcher)


def test_losses_are_those_of_one_process(launcher: str, place: Path, output: str) -> None:
    """The same examples with the same noise, in training and in evaluation."""
    for names, rtol in ((("loss", "eval_loss"), 1e-5), (("grad_norm",), 1e-4)):
        alone, both = metrics(place / "alone", *names), metrics(place / launcher, *names)
        assert both.keys() == alone.keys()
        assert len(alone) == together.STEPS + (2 if "loss" in names else 0)
        np.testing.assert_allclose(list(both.values()), list(alone.values()), rtol=rtol)
        assert np.ptp(list(alone.values())) > 0.1, "values that differ from step to step"


def test_process_0_speaks_for_all(launcher: str, place: Path, output: str) -> None:
    """Also of the image that only process 1 could not read, and of the signal that only process 1
    got.
    """
    named = output.count("images cannot be read: ") + output.count("unreadable image 1: ")
    assert named == output.count("58.png") >= 2, "once in each training"
    assert output.count("SIGTERM: saved at step 6") == 1
    assert output.count(f"finished at step {together.STEPS}") == 2
    rows = read_json_lines(place / launcher / "metrics.jsonl")
    assert [row["world_size"] for row in rows if "event" in row] == [2]
    assert {row["unreadable_images"] for row in rows if "loss" in row} == {1}


def test_resuming_with_another_number_of_processes(
    launcher: str, place: Path, output: str, tmp_path: Path
) -> None:
    """A run of two processes continues as a run of one, with the losses of a run that had one
    process all the time.
    """
    for name in ("alone", launcher):
        shutil.copytree(place / name, tmp_path / name)
        assert (
            train(
                together.training_config(place, training__n_iters=together.STEPS + 2),
                tmp_path / name,
            )
            == 0
        )
    alone, both = metrics(tmp_path / "alone", "loss"), metrics(tmp_path / launcher, "loss")
    assert (together.STEPS + 2, "loss") in alone
    np.testing.assert_allclose(list(both.values()), list(alone.values()), rtol=1e-5)


def test_samples_features_and_bound_are_those_of_one_process(
    launcher: str, place: Path, output: str
) -> None:
    """Features too where one process computed the first ones and two the others."""
    for i in range(7):
        one, other = (
            np.asarray(Image.open(place / f"{name}-images" / f"{i:06d}.png"))
            for name in ("alone", launcher)
        )
        assert np.abs(one.astype(int) - other).max() <= 1
    features = [
        together.compute_features(place, place / f"{name}-features", together.FEATURES)
        for name in ("alone", launcher)
    ]
    np.testing.assert_allclose(features[1], features[0], atol=1e-5)
    for results, count in (
        ("scores-alone", 2),
        (f"scores-{together.WITHOUT_PRIOR}", 2),
        ("measures", 8),
    ):
        rows = [
            read_json_lines(place / f"{name}-{results}" / "results.jsonl")
            for name in ("alone", launcher)
        ]
        assert len(rows[0]) == count
        for alone, several in zip(*rows, strict=True):
            assert several["value"] == pytest.approx(alone["value"], rel=1e-6), alone["score"]
            same = (
                "score",
                "num_images",
                "images_crc32",
                "train_crc32",
                "held_out_crc32",
                "other_images",
            )
            assert [several.get(key) for key in same] == [alone.get(key) for key in same]


@pytest.mark.parametrize(
    ("launcher", "how"),
    [
        *(("torchrun", "kill"), ("torchrun", "exception")),
        *(pytest.param("mpirun", how, marks=NO_MPI) for how in ("kill", "error")),
    ],
    indirect=["launcher"],
)
def test_one_process_that_fails_ends_all(
    how: str, launcher: str, place: Path, tmp_path: Path
) -> None:
    """The launcher ends the others within a minute, with an exit code that is not 0."""
    shutil.copytree(place / "folder", tmp_path / "folder")
    with job(launcher, "-m", "tests.runtime.together", tmp_path, "run", how) as process:
        output, _ = process.communicate(
            timeout=120
        )  # until no process holds the other end of the pipe
    seconds = time.time() - float((tmp_path / "failed_at").read_text())
    print(f"{launcher}, {how}: all had ended after {seconds:.1f} s, exit code {process.returncode}")
    assert process.returncode != 0, output
    assert seconds < 60
    if how != "kill":
        assert f"a deliberate {how}" in output
    elif launcher == "torchrun":  # MPICH's mpirun ends the others before they notice
        line = r"error: process 0 on .* lost another one: .*127\.0\.0\.1.*: .*the same command"
        assert re.search(line, output)
    assert ("RuntimeError: a deliberate" in output) == (how == "exception")
    assert not list(tmp_path.rglob("*.partial*"))


@pytest.mark.parametrize(
    ("rank", "reason"),
    [
        ("0", r"Timed out after \d+ seconds waiting for clients. 1/2"),
        ("1", "timed out .* connect"),
        ("0 taken", "EADDRINUSE"),
    ],
)
def test_processes_that_do_not_meet(
    rank: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others never come, process 0 is not there, or its port belongs to another run: one line,
    soon.
    """
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        if "taken" in rank:
            taken.listen()
        else:
            taken.close()
        for name, value in {
            "RANK": rank[0],
            "WORLD_SIZE": 2,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setattr(distributed, "MEETING_MINUTES", 1 / 60)
        where = (
            rf"MASTER_ADDR and MASTER_PORT, 127\.0\.0\.1:{port}, must be process 0's machine "
            rf"and a free port"
        )
        with bad_input(
            rf"^process {rank[0]} of 2, on .*{reason}.*{where}, and all 2 must have been "
            rf"started$",
        ):
            distributed._join(timedelta(minutes=1))


LEFT_OVER = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_a_machine_that_is_gone_is_noticed_within_two_minutes() -> None:
    wait = distributed.KEEPALIVE
    assert wait["TCP_KEEPIDLE"] + wait["TCP_KEEPINTVL"] * wait["TCP_KEEPCNT"] == 120


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MASTER_ADDR", ""),
        ("MASTER_PORT", ""),
        ("MASTER_PORT", "http"),
        ("RANK", "first"),
        ("WORLD_SIZE", "two"),
    ],
)
def test_variables_left_over_in_a_shell(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other, right in (LEFT_OVER | {name: value}).items():
        monkeypatch.setenv(other, right)
    with bad_input(f"but {name}='{value}': a launcher sets RANK, .*: unset RANK WORLD_SIZE$"):
        distributed._join(timedelta(minutes=1))


@NO_MPI
def test_sigterm_to_mpirun(tmp_path: Path) -> None:
    """As for one process: all stop after the same step, it is saved, and the exit code is not 0."""
    endless = (
        "--config.training.n_iters=100000",
        "--config.training.log_freq=1",
        "--config.training.eval_freq=1000000",
    )
    with job(
        "mpirun", ROOT / "train.py", "--config", TINY, "--workdir", tmp_path, *endless
    ) as process:
        assert process.stdout is not None
        assert any(line.startswith("step 3/") for line in process.stdout)
        process.terminate()
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    saved = f"SIGTERM: saved at step {read(meta_path(tmp_path))['step']}"
    assert output.count(f"{saved}; the same command continues") == 1


def test_commands_share_out_their_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """evaluate.py and sample.py: one row of results, one set of images, by two processes."""
    assert train(tiny_config(training__n_iters=1), tmp_path / "run") == 0
    common = ("--config", TINY, "--workdir", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    output_of(
        "torchrun",
        ROOT / "tests" / "evaluate_here.py",
        *common,
        "--mode=elbo",
        "--num_images=5",
        "--delta=0.01",
    )
    (log,) = tmp_path.rglob("ELBO_log.txt")
    assert len(log.read_text().splitlines()) == 1
    export = ("--export_dir", tmp_path / "images", "--num_samples=5", "--batch_size=2")
    assert output_of("torchrun", ROOT / "sample.py", *common, *export).count("5 samples in") == 1
    assert sorted(path.name for path in (tmp_path / "images").glob("*.png")) == [
        f"{i:06d}.png" for i in range(5)
    ]


@pytest.mark.parametrize(("batch_size", "accumulation_steps", "multiple"), [(7, 1, 2), (6, 2, 4)])
def test_batches_that_cannot_be_shared_out(
    batch_size: int,
    accumulation_steps: int,
    multiple: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    config = tiny_config(
        training__batch_size=batch_size, training__accumulation_steps=accumulation_steps
    )
    with bad_input(
        rf"config\.training\.batch_size = {batch_size}: must be a multiple of {multiple}",
    ):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
