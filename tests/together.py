"""What tests/test_distributed.py has several processes do: `torchrun ... -m tests.together PLACE`. Not a test by itself."""

import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from ml_collections import ConfigDict

from scripts import distributed
from scripts.checkpoint import meta_path, read
from scripts.evaluation.bound import LikelihoodEvaluation
from scripts.evaluation.features import kept_features
from scripts.evaluation.results import append_result
from scripts.sampling.sampler import export, load_sampler
from scripts.training.loop import train
from scripts.training.step import Trainer
from tests.conftest import tiny_config

STEPS = 20


def training_config(place: Path, **overrides: object) -> ConfigDict:
    """On a folder of images. Without dropout, whose masks belong to a process; with a warm-up, as real runs have one."""
    settings = {
        "data__dataset": "folder", "data__path": str(place / "folder"), "training__n_iters": STEPS, "training__log_freq": 1,
        "training__batch_size": 8, "training__eval_freq": 10, "training__sampling_freq": 10, "eval__num_images": 5,
        "model__dropout": 0.0, "optim__warmup": 100, "data__uniform_dequantization": True,
    }  # fmt: skip
    return tiny_config(**{**settings, **overrides})


def evaluate(place: Path, workdir: Path, name: str) -> None:
    """Samples, features and a bound of the run in `workdir`, in place/name-...; their numbers are odd, so are the shares."""
    config = training_config(place)
    sampler, trained = load_sampler(config, workdir, 0)
    export(place / f"{name}-images", sampler, trained, 7, 2)

    def features(indices: Sequence[int]) -> np.ndarray:
        return sampler.independent(indices).flatten(1).numpy()

    if distributed.is_main():
        kept_features(place / f"{name}-features", {"by": "test"}, 3, 2, features, "begun by one process")
    rows = kept_features(place / f"{name}-features", {"by": "test"}, 8, 2, features, "features")
    assert rows.shape == (8, 64)
    bound = LikelihoodEvaluation(config, workdir, split="test", num_images=0, num_levels_per_image=2, exact=False, batch_size=4)
    for result in bound(checkpoint=0, delta=0.0125, seed=0, directory=place / f"{name}-scores"):
        append_result(place / f"{name}-scores", result, param_name="delta", seconds=0)


def check_collectives() -> None:
    """What `distributed` promises, among real processes."""
    rows = distributed.gather_rows(torch.full((distributed.rank(), 2), float(distributed.rank())))
    assert rows.tolist() == [[float(rank)] * 2 for rank in range(distributed.world_size()) for _ in range(rank)]
    for count in (1, 2, 7):
        assert distributed.compute_rows(range(count), lambda mine: torch.tensor([i**2 for i in mine])).tolist() == [
            i**2 for i in range(count)
        ]
    assert distributed.gather({"rank": distributed.rank()}) == [{"rank": rank} for rank in range(distributed.world_size())]
    assert distributed.from_main(f"of {distributed.rank()}") == "of 0"
    warnings.warn("seen by all", stacklevel=1)


def check_interruption(place: Path) -> None:
    """A signal to the last process alone stops all after the same step; the run goes on to the very same state."""
    train_step = Trainer.train_step

    def signalled(trainer: Trainer, images: torch.Tensor) -> object:
        if trainer.step == 7 and distributed.rank() == distributed.world_size() - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(trainer, images)

    with patch.object(Trainer, "train_step", signalled):
        assert train(training_config(place), place / "parts") == 0
    distributed.barrier()
    assert read(meta_path(place / "parts"))["step"] == 8
    assert train(training_config(place), place / "parts") == 0
    distributed.barrier()
    whole, parts = (read(meta_path(place / name)) for name in ("together", "parts"))
    for name, weight in whole["model"].items():
        assert torch.equal(weight, parts["model"][name]), name
    for name, average in whole["ema"]["shadow"].items():
        assert torch.equal(average, parts["ema"]["shadow"][name]), name


def main() -> None:
    """All of it, in one start of the processes."""
    place = Path(sys.argv[1])
    with distributed.processes():
        check_collectives()
        assert train(training_config(place), place / "together") == 0
        check_interruption(place)
        if (place / "alone").exists():
            evaluate(place, place / "alone", "together")


if __name__ == "__main__":
    main()
