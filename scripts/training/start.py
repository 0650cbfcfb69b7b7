"""How a run starts: alone in its directory, with a new prior or from its newest checkpoint."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from model_code.prior import Prior
from scripts.config.comparison import FREE_ON_RESUME, differences, refuse_differences
from scripts.data.images import ImageSource
from scripts.data.loader import clean_batches, none_readable
from scripts.errors import UserError, one_line
from scripts.runtime import distributed
from scripts.runtime.device import Precision
from scripts.runtime.progress import progress_bar
from scripts.storage.checkpoint import Contents
from scripts.training.interruption import InterruptionGuard
from scripts.training.log import UnreadableImages
from scripts.training.step import Trainer


@contextmanager
def exclusive(workdir: Path) -> Iterator[None]:
    """Refuse a second training in the same directory, by a lock that ends with process 0, however that comes about."""
    with (workdir / ".lock").open("w") as lock:
        try:
            if distributed.is_main():
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(f"--workdir={workdir}: another training is running there; choose another, or wait") from None
        yield


def build_prior(trainer: Trainer, images: ImageSource, guard: InterruptionGuard, unreadable: UnreadableImages) -> Prior:
    """The prior of all training images, and of their mirror images if training mirrors them.

    Raises Interrupted, and ReadingFailed if no image can be read.
    """
    data, batch_size = trainer.config.data, trainer.config.eval.batch_size

    def batches() -> Iterator[torch.Tensor]:
        with progress_bar(len(distributed.shard(range(len(images)))), "image", "reading images for the prior") as bar:
            for batch in clean_batches(images, batch_size, data.num_workers, data.uniform_dequantization, data.random_flip):
                guard.check()
                unreadable.note(batch.unreadable)
                bar.update(len(batch.indices.unique()))
                yield batch.images

    with guard.until_interrupted():
        prior = trainer.process.build_prior(batches())
    unreadable.share()
    prior = prior.gathered(distributed.gather_rows)
    if len(prior) == 0:
        raise none_readable(sorted(unreadable))
    return prior


def resume(trainer: Trainer, saved: Contents, data: dict[str, int], workdir: Path) -> tuple[Prior, dict[str, str]]:
    """Load a checkpoint into `trainer`. Returns its prior, and what has changed in the configuration since.

    data: the fingerprint of the training images. Raises UserError if the checkpoint is one of other images or another model.
    """
    config, where = trainer.config, f"the checkpoint in {workdir}"
    refuse_differences(saved["config"], config, FREE_ON_RESUME, where)
    if any(saved["data"].get(key, value) != value for key, value in data.items()):  # earlier versions had fewer keys
        raise UserError(
            f"{where} was trained on other images than {config.data.dataset!r} now has ({saved['data']['num_images']} then, "
            f"{data['num_images']} now): restore them, or choose another --workdir"
        )
    changes = differences(saved["config"], config)
    precision = saved.get("precision", trainer.precision.name)
    # What "auto" chose when the run began stays, on whatever processor it goes on.
    asked_for = config.optim.amp_dtype != "auto" or changes.keys() & {"optim.automatic_mp", "optim.amp_dtype"}
    if precision != trainer.precision.name and not asked_for:
        reason = f"as before; config.optim.amp_dtype = 'auto' would choose {trainer.precision.name} here"
        trainer.compute_in(Precision.named(trainer.device, precision, reason))
    try:
        trainer.load_state_dict(saved)
        prior = trainer.process.prior_from_state(saved["prior"])
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"{where} does not fit its own configuration: {one_line(error)}") from None
    print(f"continuing from step {trainer.step}")
    for key, change in changes.items():
        print(f"config.{key} was {change}")
    return prior, changes
