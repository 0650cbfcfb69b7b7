"""What tests/test_distributed.py has several processes do. Not a test by itself.

torchrun --nproc_per_node=2 -m tests.together PLACE NAME [kill | exception | error]

Trains in PLACE/NAME and evaluates PLACE/alone. With a third argument process 1 ends in that way
during the third step.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

from scripts.errors import UserError
from scripts.evaluation.bound import BoundEvaluation
from scripts.evaluation.features import cached_features
from scripts.evaluation.metrics import MODES
from scripts.evaluation.results import Point, append_results
from scripts.evaluation.scores import SampleEvaluation
from scripts.runtime import distributed
from scripts.sampling.export import export
from scripts.sampling.sampler import load_sampler
from scripts.storage.checkpoint import meta_path, read
from scripts.training.loop import train
from tests.tiny import tiny_config
from tests.training.runs import before_step, differing

STEPS = 10
WITHOUT_PRIOR = "without-prior"
"""The run `alone` with a checkpoint that lacks the prior, which is then made from the data set."""
FEATURES = 8


def training_config(place: Path, **overrides: object) -> ConfigDict:
    """On a folder of images, without dropout, whose masks depend on the number of processes."""
    settings = {
        "data__dataset": "folder",
        "data__path": str(place / "folder"),
        "data__uniform_dequantization": True,
        "model__blur_schedule": "matched",
        "model__dropout": 0.0,
        "optim__warmup": 100,
        "training__n_iters": STEPS,
        "training__batch_size": 8,
        "training__log_freq": 1,
        "training__eval_freq": 5,
        "training__sampling_freq": 5,
        "eval__num_images": 5,
    }
    return tiny_config(**{**settings, **overrides})


def compute_features(place: Path, directory: Path, count: int) -> np.ndarray:
    """Pixels of `count` samples of the run in place/alone, as "features", through the cache in
    `directory`.
    """
    sampler, _ = load_sampler(place / "alone", config=training_config(place))

    def features(indices: Sequence[int]) -> np.ndarray:
        return sampler.independent(indices).flatten(1).numpy()

    return cached_features(directory, "test", count, 2, features, "features")


def evaluate(place: Path, name: str) -> None:
    """Samples, features, bound and measures of the run in place/alone, in place/NAME-...; odd
    numbers: shares differ.
    """
    config = training_config(place)
    sampler, trained = load_sampler(place / "alone", config=config)
    export(place / f"{name}-images", sampler, sampler.record(trained).settings(), 7, 2)
    assert compute_features(place, place / f"{name}-features", FEATURES).shape == (FEATURES, 64)
    for run in ("alone", WITHOUT_PRIOR):
        scores = place / f"{name}-scores-{run}"
        bound = BoundEvaluation(
            config,
            place / run,
            scores,
            split="test",
            num_images=0,
            num_levels_per_image=2,
            exact=False,
            batch_size=4,
        )
        results = bound(Point(0.0125, seed=0))
        append_results(scores, results, param_name="delta", seconds=0)
    for mode in ("spectrum", "copying"):
        measures = SampleEvaluation(
            config,
            place / "alone",
            cache=place / f"{name}-samples",
            metrics=MODES[mode],
            batch_size=2,
            num_gen=7,
        )
        results = measures(Point(init="train", seed=0))
        append_results(place / f"{name}-measures", results, param_name="delta", seconds=0)


def check_keep_alive() -> None:
    """The kernel asks after silent machines on every connection of this process."""
    rows = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path("/proc/net", name).read_text().splitlines()[1:]
    ]
    mine = {
        str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()
    }  # the listing is gone
    timers = [row[5][:2] for row in rows if f"socket:[{row[9]}]" in mine and row[3] == "01"]
    assert timers
    assert set(timers) <= {"01", "02"}, timers  # 01: something was just sent


def check_collectives() -> None:
    """Rows and values arrive in the order of ranks, also where processes have different numbers of
    rows or none.
    """
    rank, size = distributed.rank(), distributed.world_size()
    rows = distributed.gather_rows(torch.full((rank, 2), float(rank)))
    assert rows.tolist() == [[float(r)] * 2 for r in range(size) for _ in range(r)]
    for count in (1, 2, 7):
        rows = distributed.compute_rows(
            range(count), lambda mine: torch.tensor([i**2 for i in mine])
        )
        assert rows.tolist() == [i**2 for i in range(count)]
    assert distributed.gather({"rank": rank}) == [{"rank": r} for r in range(size)]
    assert distributed.from_main(f"of {rank}") == "of 0"


def train_with(config: ConfigDict, workdir: Path, step: int, what: Callable[[], object]) -> int:
    """Train; process 1 does `what` before 0-based step `step`. Returns the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, step, lambda: distributed.rank() == 1 and what())
        return train(config, workdir)


def check_interruption(place: Path, name: str) -> None:
    """A signal to process 1 alone stops all after the same step; the run then continues to the very
    same state.
    """
    workdir = place / f"{name}-parts"
    assert (
        train_with(training_config(place), workdir, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
        == 143
    )
    distributed.barrier()
    assert read(meta_path(workdir))["step"] == 6
    assert train(training_config(place), workdir) == 0
    distributed.barrier()
    whole, parts = (read(meta_path(path)) for path in (place / name, workdir))
    assert not [
        part
        for key in ("model", "ema", "optimizer")
        for part in differing(whole[key], parts[key], key)
    ]


def fail(how: str, place: Path) -> None:
    """End this process, after writing down when."""
    (place / "failed_at").write_text(str(time.time()))
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise (
        UserError("a deliberate error")
        if how == "error"
        else RuntimeError("a deliberate exception")
    )


def main() -> None:
    """All of it, in one start of the processes."""
    place, name, *how = sys.argv[1:]
    with distributed.processes():
        if how:
            train_with(
                training_config(Path(place)),
                Path(place) / name,
                2,
                lambda: fail(how[0], Path(place)),
            )
        check_keep_alive()
        check_collectives()
        assert train(training_config(Path(place)), Path(place) / name) == 0
        check_interruption(Path(place), name)
        evaluate(Path(place), name)


if __name__ == "__main__":
    main()
