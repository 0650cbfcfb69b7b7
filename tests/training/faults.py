"""Training that is killed again and again ends as if nobody had touched it.

python -m tests.training.faults --kills=100 [--seed=0]

Runs `train.py` on a tiny model, ends it by SIGKILL at random moments (starting up, in a step,
writing a checkpoint, evaluating,
sampling), starts it again, and compares the result with that of an undisturbed run: weights, averages, optimizer, metrics and
samples, bit for bit. Where a run finishes before all kills are spent, another one begins.
"""

import argparse
import contextlib
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


def main(argv: list[str] | None = None) -> int:
    """Kill, resume, compare, report.

    Returns the exit code: 0 if every run ended as the undisturbed one.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="how many times to kill a training")
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="chooses the moments, as far as a machine repeats itself",
    )
    parser.add_argument("--n_iters", type=int, default=24, help="steps of a run")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="faults-") as directory:
        faults = Faults(Path(directory), options.seed, options.n_iters)
        with tqdm(total=options.kills, unit="kill", file=sys.stdout, dynamic_ncols=True) as bar:
            while sum(faults.moments.values()) < options.kills:
                faults.run(options.kills, bar)
    result = "FAILED" if faults.failures else "every run ended bit for bit as the undisturbed one"
    where = ", ".join(f"{count} {name}" for name, count in faults.moments.most_common())
    print(
        f"{options.kills} kills ({where}) in {faults.runs} runs of {options.n_iters} steps: "
        f"{result}",
        *faults.failures,
        sep="\n",
    )
    return 1 if faults.failures else 0


class Faults:
    """Trainings below `directory`: one undisturbed, the others killed."""

    def __init__(self, directory: Path, seed: int, n_iters: int) -> None:
        """Trains undisturbed, to compare with and to see how long what takes."""
        self.directory, self.n_iters, self.random, self.runs = (
            directory,
            n_iters,
            random.Random(seed),
            0,
        )
        self.moments: Counter[str] = Counter()
        self.failures: list[str] = []
        started = time.monotonic()
        with self._start("undisturbed") as process:
            self._wait_for_first_step(process, "undisturbed")
            self.start_up = time.monotonic() - started
        self.seconds = time.monotonic() - started
        if process.returncode != 0:
            raise RuntimeError(
                f"the undisturbed run failed: {self._log('undisturbed').read_text()[-500:]}"
            )
        self.expected = outcome(directory / "undisturbed")

    def _start(self, name: str, workers: int = 0) -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            str(ROOT / "train.py"),
            "--workdir",
            str(self.directory / name),
            *ARGS,
        ]
        command += [
            f"--config.training.n_iters={self.n_iters}",
            f"--config.data.num_workers={workers}",
        ]
        with self._log(name).open("w") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def _log(self, name: str) -> Path:
        """What the newest process of a run printed."""
        return self.directory / f"{name}.log"

    def run(self, most_kills: int, bar: tqdm) -> None:
        """One run, killed until it is finished or `most_kills` are reached in all; then the
        comparison.
        """
        name = f"run {self.runs}"
        workdir = self.directory / name
        self.runs += 1
        while True:
            with self._start(name, workers=self.random.choice([0, 0, 1])) as process:
                if bar.n < most_kills:
                    self._wait_and_kill(process, name)
            output = self._log(name).read_text()
            if process.returncode == 0:
                break
            if process.returncode != -signal.SIGKILL:
                raise RuntimeError(f"{name}: exit code {process.returncode}: {output[-500:]}")
            self.moments[moment(workdir, output)] += 1
            for partial in workdir.rglob("*.partial*"):
                os.utime(partial, (0, 0))  # as if the restart came hours later
            bar.update()
        self.failures += [
            f"{name}: {place} differs" for place in differing(self.expected, outcome(workdir))
        ]
        self.failures += [f"{name}: {path.name} was left" for path in workdir.rglob("*.partial*")]
        shutil.rmtree(workdir)

    def _wait_and_kill(self, process: subprocess.Popen[bytes], name: str) -> None:
        """One in five while starting up, the others from the first step on."""
        if self.random.random() < 0.2:
            seconds = self.random.uniform(0, self.start_up)
        else:
            self._wait_for_first_step(process, name)
            seconds = self.random.uniform(0, (self.seconds - self.start_up) / 3)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        process.kill()

    def _wait_for_first_step(self, process: subprocess.Popen[bytes], name: str) -> None:
        while process.poll() is None and "\nstep " not in self._log(name).read_text():
            time.sleep(0.01)


def moment(workdir: Path, output: str) -> str:
    """What a killed training was doing, by what it left behind."""
    partial = [path.name for path in workdir.rglob("*.partial*")]
    if any(name.startswith(".checkpoint") for name in partial):
        return "writing a checkpoint"
    if checkpoint.previous_path(workdir).exists() and not checkpoint.meta_path(workdir).exists():
        return "between two renames"
    if any(not (folder / "final.png").exists() for folder in workdir.glob("samples/*")):
        return "sampling"
    return "in or between steps" if "\nstep " in output else "starting up"


def outcome(workdir: Path) -> dict[str, Any]:
    """What a finished run leaves, as far as it does not tell the time."""
    contents = checkpoint.read(checkpoint.meta_path(workdir))
    rows = [
        {k: v for k, v in row.items() if k != "images_per_second"}
        for row in read_json_lines(workdir / "metrics.jsonl")
    ]
    return {
        **{key: contents[key] for key in ("step", "model", "ema", "optimizer", "prior")},
        "numbered": {
            path.name: checkpoint.read(path)["ema"] for path in (workdir / "checkpoints").iterdir()
        },
        "metrics": [row for row in rows if "loss" in row],
        "evaluations": [row for row in rows if "eval_loss" in row],
        "samples": {
            str(path.relative_to(workdir)): path.read_bytes()
            for path in workdir.glob("samples/*/*.np[yz]")
        },
    }


if __name__ == "__main__":
    sys.exit(main())
