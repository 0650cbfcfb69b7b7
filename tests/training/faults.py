"""Training that is killed again and again ends as if nobody had touched it.

python -m tests.training.faults --kills=100

Runs `train.py` on a tiny model, ends it by SIGKILL at random moments (starting up, in a step,
writing a checkpoint, evaluating, sampling), starts it again, and compares the result with that of
an undisturbed run: weights, averages, optimizer, metrics and samples, bit for bit. Where a run
finishes before all kills are spent, another one begins.
"""

import argparse
import contextlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tqdm import tqdm

from scripts.config.paths import ROOT
from scripts.storage import checkpoint
from scripts.storage.files import read_json_lines
from tests.tiny import TINY
from tests.training.runs import differing

ARGS = [
    "--config", str(TINY), "--config.training.log_freq=1", "--config.training.eval_freq=5",
    "--config.training.sampling_freq=12", "--config.training.snapshot_freq=7",
    "--config.training.snapshot_freq_for_preemption=1", "--config.data.uniform_dequantization=True",
]  # fmt: skip
STEP = "\nstep "


def main(argv: list[str] | None = None) -> int:
    """Kill, resume, compare, report.

    Returns the exit code: 0 if every run ended as the undisturbed one.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="how many times to kill a training")
    parser.add_argument("--n_iters", type=int, default=24, help="steps of a run")
    options = parser.parse_args(argv)
    moments: Counter[str] = Counter()
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="faults-") as directory:
        undisturbed = Path(directory, "undisturbed")
        started = time.monotonic()
        if run(undisturbed, options.n_iters) != 0:
            raise RuntimeError(f"the undisturbed run failed: {log(undisturbed)[-500:]}")
        seconds = time.monotonic() - started
        expected = outcome(undisturbed)
        for number in tqdm(itertools.count(), unit="run", file=sys.stdout, dynamic_ncols=True):
            workdir = Path(directory, f"run {number}")
            while True:
                most = seconds if moments.total() < options.kills else None
                code = run(workdir, options.n_iters, most)
                if code == 0:
                    break
                if code != -signal.SIGKILL:
                    raise RuntimeError(f"{workdir.name}: exit code {code}: {log(workdir)[-500:]}")
                moments[moment(workdir)] += 1
                for partial in workdir.rglob("*.partial*"):
                    os.utime(partial, (0, 0))  # as if the restart came hours later
            failures += differing(expected, outcome(workdir), workdir.name)
            failures += map(str, workdir.rglob("*.partial*"))
            shutil.rmtree(workdir)
            if moments.total() == options.kills:
                break
    result = "FAILED" if failures else "every run ended bit for bit as the undisturbed one"
    where = ", ".join(f"{count} {name}" for name, count in moments.most_common())
    print(f"{options.kills} kills ({where}) in {number + 1} runs: {result}", *failures, sep="\n")
    return 1 if failures else 0


def run(workdir: Path, n_iters: int, seconds: float | None = None) -> int:
    """Train, and kill that within a third of what a run takes, `seconds`: one time in five counted
    from the start, else from the first step. Returns the exit code.
    """
    command = [sys.executable, str(ROOT / "train.py"), "--workdir", str(workdir), *ARGS]
    workers = random.choice([0, 0, 1])
    command += [f"--config.training.n_iters={n_iters}", f"--config.data.num_workers={workers}"]
    place = workdir.with_suffix(".log")
    with place.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        if seconds is None:
            return process.wait()
        starting_up = random.random() < 0.2
        while not starting_up and process.poll() is None and STEP not in log(workdir):
            time.sleep(0.01)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(random.uniform(0, seconds / 3))
        process.kill()
    return process.returncode


def log(workdir: Path) -> str:
    """What the newest process of a run printed."""
    return workdir.with_suffix(".log").read_text()


def moment(workdir: Path) -> str:
    """What a killed training was doing, by what it left behind."""
    partial = [path.name for path in workdir.rglob("*.partial*")]
    if any(name.startswith(".checkpoint") for name in partial):
        return "writing a checkpoint"
    if checkpoint.previous_path(workdir).exists() and not checkpoint.meta_path(workdir).exists():
        return "between two renames"
    if any(not (folder / "final.png").exists() for folder in workdir.glob("samples/*")):
        return "sampling"
    return "in or between steps" if STEP in log(workdir) else "starting up"


def outcome(workdir: Path) -> dict[str, Any]:
    """What a finished run leaves, as far as it does not tell the time."""
    contents = checkpoint.read(checkpoint.meta_path(workdir))
    rows = [row for row in read_json_lines(workdir / "metrics.jsonl") if "event" not in row]
    for row in rows:
        row.pop("images_per_second", None)
    numbered = (workdir / "checkpoints").iterdir()
    return {
        **{key: contents[key] for key in ("step", "model", "ema", "optimizer", "prior")},
        "numbered": {path.name: checkpoint.read(path)["ema"] for path in numbered},
        "metrics": sorted(map(repr, rows)),
        "samples": {
            str(path.relative_to(workdir)): path.read_bytes()
            for path in workdir.glob("samples/*/*.np[yz]")
        },
    }


if __name__ == "__main__":
    sys.exit(main())
