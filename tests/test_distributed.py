"""Several processes, started by torchrun and by mpirun on this machine: the same results as one, and one end for all."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts import distributed
from scripts.checkpoint import meta_path, read
from scripts.config import ROOT
from scripts.errors import UserError
from scripts.io import read_json_lines
from scripts.training.loop import train
from tests import together
from tests.conftest import tiny_config

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
MPIRUN = [str(MPIEXEC), "-n", "2", sys.executable]
WITH_MPI = pytest.mark.skipif(MPIEXEC is None, reason="no MPI on this machine; pip install mpich brings one")
LAUNCHERS = [pytest.param(TORCHRUN, id="torchrun"), pytest.param(MPIRUN, id="mpirun", marks=WITH_MPI)]

CONFIG = """
import os
from tests.conftest import tiny_config


def get_config():
    config = tiny_config(training__n_iters=100000, training__log_freq=1, training__eval_freq=10**6)
    if "BAD_PROCESS" in os.environ and os.environ["BAD_PROCESS"] in (os.environ.get("RANK"), os.environ.get("PMI_RANK")):
        config.data.path = "/no/such/place.npz"
    return config
"""


@contextmanager
def job(launcher: list[str], *args: object, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Processes in a group of their own, of which none is left afterwards."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    with subprocess.Popen(
        [*launcher, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def output_of(launcher: list[str], *args: object, code: int = 0, **variables: str) -> str:
    with job(launcher, *args, **variables) as process:
        output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    return output


def losses(workdir: Path) -> dict[tuple[int, str], float]:
    """All losses of a run, by step and name."""
    return {
        (row["step"], name): value
        for row in read_json_lines(workdir / "metrics.jsonl")
        for name, value in row.items()
        if name in ("loss", "eval_loss")
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of the same training by one process (`alone`), by two (`together`) and by two that were stopped (`parts`)."""
    place = tmp_path_factory.mktemp("together")
    (place / "folder").mkdir()
    rng = np.random.default_rng(0)
    for i in range(60):
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(place / "folder" / f"{i:02d}.png")
    damaged = place / "folder" / "58.png"  # the second process's when images are read in order
    damaged.write_bytes(damaged.read_bytes()[:60])
    assert train(together.training_config(place), place / "alone") == 0
    together.evaluate(place, place / "alone", "alone")
    (place / "output.txt").write_text(output_of(TORCHRUN, "-m", "tests.together", place))
    return place


def test_losses_are_those_of_one_process(place: Path) -> None:
    """The same examples with the same noise: 20 steps of training and both evaluations agree to 1e-5."""
    alone, both = losses(place / "alone"), losses(place / "together")
    assert both.keys() == alone.keys()
    assert len(alone) == together.STEPS + 2
    np.testing.assert_allclose(list(both.values()), list(alone.values()), rtol=1e-5)
    assert np.ptp(list(alone.values())) > 0.1, "losses that differ from step to step"
    norms = [[row["grad_norm"] for row in read_json_lines(place / name / "metrics.jsonl") if "loss" in row]
             for name in ("alone", "together")]  # fmt: skip
    np.testing.assert_allclose(norms[1], norms[0], rtol=1e-4)


def test_process_0_speaks_for_all(place: Path) -> None:
    """Also of the image that only the other one could not read, and of the signal that only the other one got."""
    output = (place / "output.txt").read_text()
    assert output.count("UserWarning: seen by all") == 1
    assert output.count("unreadable image 1: ") == output.count("58.png") == 3, "once each time that a training was started"
    assert output.count("SIGTERM: saved at step 8") == 1
    assert output.count("finished at step 20") == 2
    for name in ("alone", "together"):
        rows = read_json_lines(place / name / "metrics.jsonl")
        assert {row["unreadable_images"] for row in rows if "loss" in row} == {1}
        starts = [row["world_size"] for row in rows if "event" in row]
        assert starts == [1] if name == "alone" else [2]
        assert len(rows) == together.STEPS + 2 + len(starts)


def test_resuming_with_another_number_of_processes(place: Path, tmp_path: Path) -> None:
    """A run of two goes on as a run of one, and its losses stay those of one that was alone all the time."""
    for name in ("alone", "together"):
        shutil.copytree(place / name, tmp_path / name)
        assert train(together.training_config(place, training__n_iters=24), tmp_path / name) == 0
    alone, both = losses(tmp_path / "alone"), losses(tmp_path / "together")
    assert (24, "loss") in alone
    np.testing.assert_allclose(list(both.values()), list(alone.values()), rtol=1e-5)


def test_samples_features_and_bound_are_those_of_one_process(place: Path) -> None:
    """Features too where one process computed the first and two the others."""
    for i in range(7):
        one, other = (np.asarray(Image.open(place / f"{name}-images" / f"{i:06d}.png")) for name in ("alone", "together"))
        assert np.abs(one.astype(int) - other).max() <= 1
    kept = []
    for name in ("alone", "together"):
        files = sorted((place / f"{name}-features").glob("features_*.npz"))
        assert [file.stem.rsplit("_", 1)[1] for file in files] == ["0000000-0000003", "0000003-0000008"]
        kept.append(np.concatenate([np.load(file)["features"] for file in files]))
    np.testing.assert_allclose(kept[1], kept[0], atol=1e-5)
    for score in ("ELBO", "BPD"):
        rows = [read_json_lines(place / f"{name}-scores" / f"{score}_log.jsonl") for name in ("alone", "together")]
        assert [len(of_one) for of_one in rows] == [1, 1]
        assert rows[1][0]["value"] == pytest.approx(rows[0][0]["value"], rel=1e-6)
        assert rows[1][0]["num_images"] == rows[0][0]["num_images"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "config.py"
    path.write_text(CONFIG)
    return path


def pids(launched: subprocess.Popen[str]) -> dict[int, int]:
    """By rank, the processes of train.py that a launcher has started."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes().split(b"\0")
            variables = dict(item.split(b"=", 1) for item in (entry / "environ").read_bytes().split(b"\0") if b"=" in item)
        except OSError:
            continue
        rank = variables.get(b"RANK") or variables.get(b"PMI_RANK")
        if rank and variables.get(b"JOB") == str(os.getpid()).encode() and any(part.endswith(b"train.py") for part in line):
            found[int(rank)] = int(entry.name)
    return found


def wait_for(line_start: str, process: subprocess.Popen[str]) -> str:
    """Read the output up to a line."""
    assert process.stdout is not None
    before = []
    for line in process.stdout:
        before.append(line)
        if line.startswith(line_start):
            break
    else:
        raise AssertionError("".join(before))
    return "".join(before)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_kill_9_of_one_ends_all(launcher: list[str], config: Path, tmp_path: Path) -> None:
    """Within seconds, with an exit code that is not 0, and what is on disk is whole; the first losses are one process's."""
    args = (ROOT / "train.py", "--config", config, "--workdir", tmp_path)
    with job(launcher, *args, JOB=str(os.getpid())) as process:
        wait_for("step 5/", process)
        started = time.monotonic()
        ranks = pids(process)
        assert sorted(ranks) == [0, 1]
        os.kill(ranks[1], signal.SIGKILL)
        output, _ = process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert time.monotonic() - started < 30
    assert not pids(process)
    if launcher == TORCHRUN:  # mpirun kills the others and speaks for them
        assert "error: process 1 of 2 died without a word" in output
    assert json.loads((tmp_path / "config.json").read_text())["model"]["K"] == 3
    assert not list(tmp_path.rglob("*.partial*"))
    assert len(losses(tmp_path)) >= 5


def test_an_error_in_one_ends_all(config: Path, tmp_path: Path) -> None:
    """Data that only the second process cannot read: its message once, and nothing is written."""
    args = (ROOT / "train.py", "--config", config, "--workdir", tmp_path / "run")
    output = output_of(TORCHRUN, *args, code=1, BAD_PROCESS="1")
    assert output.count("error: config.data.dataset = 'mnist5k', config.data.path = '/no/such/place.npz'") == 1
    assert not (tmp_path / "run").exists()


@WITH_MPI
def test_bad_flags_are_reported_once(config: Path, tmp_path: Path) -> None:
    """By the first process; all exit as one would."""
    args = (ROOT / "train.py", "--config", config, "--workdir", tmp_path / "run", "--config.model.Kx=3")
    assert (
        output_of(MPIRUN, *args, code=2) == "error: --config.model.Kx: there is no such key; did you mean --config.model.K?\n"
    )


@WITH_MPI
def test_sigterm_to_mpirun(config: Path, tmp_path: Path) -> None:
    """As for one process: saved at one step by all, exit code 0."""
    with job(MPIRUN, ROOT / "train.py", "--config", config, "--workdir", tmp_path) as process:
        wait_for("step 3/", process)
        process.terminate()
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert output.count(f"SIGTERM: saved at step {read(meta_path(tmp_path))['step']}; the same command goes on") == 1


def test_commands_share_out_their_work(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """evaluate.py, in a sweep, and sample.py: one table, one set of lines and images, by two processes."""
    assert train(tiny_config(training__n_iters=1), tmp_path / "run") == 0
    common = ("--config", config, "--workdir", tmp_path / "run")
    with_n_iters = "--config.training.n_iters=1"
    monkeypatch.chdir(tmp_path)
    output = output_of(
        TORCHRUN, ROOT / "evaluate.py", *common, with_n_iters, "--mode=elbo", "--num_images=5", "--sweep=delta=0.01,0.02"
    )
    assert output.count("best ELBO") == 1
    (log,) = tmp_path.glob("runs/*/evaluation_results/run/ELBO_log.txt")
    assert len(log.read_text().splitlines()) == 2
    export = ("--export_dir", tmp_path / "images", "--num_samples=5", "--batch_size=2")
    assert output_of(TORCHRUN, ROOT / "sample.py", *common, *export).count("5 samples in") == 1
    assert sorted(path.name for path in (tmp_path / "images").glob("*.png")) == [f"{i:06d}.png" for i in range(5)]


@pytest.mark.parametrize(("batch_size", "accumulation_steps", "multiple"), [(7, 1, 2), (6, 2, 4)])
def test_batches_that_cannot_be_shared_out(
    batch_size: int, accumulation_steps: int, multiple: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    config = tiny_config(training__batch_size=batch_size, training__accumulation_steps=accumulation_steps)
    with pytest.raises(UserError, match=rf"config\.training\.batch_size = {batch_size}: must be a multiple of {multiple}"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
