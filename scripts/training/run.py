"""A training in one run directory: how it starts, with a new prior or from its newest checkpoint,
and how it is saved.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict

from model_code import build_process
from model_code.gaussian import GaussianProcess
from model_code.prior import Prior
from model_code.spectrum import DCTMoments
from scripts.config.comparison import FREE_ON_RESUME, differences, with_levels
from scripts.config.load import RUN_CONFIG, to_json
from scripts.config.schedule import LOG, MATCHED, settled, with_schedule
from scripts.data.images import ImageSource, describe_change, identity
from scripts.data.loader import (
    HeldOutBatches,
    ReadingFailed,
    UnreadableImages,
    first_readable,
    none_readable,
)
from scripts.data.training_set import matched_to, share_moments, training_images
from scripts.errors import UserError, one_line
from scripts.runtime import distributed
from scripts.runtime.device import Precision, device_name
from scripts.sampling.calibration import calibrate, calibration_images
from scripts.storage import checkpoint, snapshots
from scripts.storage.checkpoint import Contents
from scripts.storage.files import atomic_write
from scripts.storage.provenance import provenance
from scripts.training.initial import InitialWeights
from scripts.training.interruption import InterruptionGuard
from scripts.training.step import Trainer


class Run:
    """Everything that a training consists of, and its state on disk."""

    calibration: dict[str, torch.Tensor] | None = None
    """Of the averaged weights at step `calibration_step`."""
    calibration_step = -1

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        device: torch.device,
        guard: InterruptionGuard,
        images: ImageSource,
        held_out: ImageSource,
        initial: InitialWeights | None,
    ) -> None:
        """images: to train on; initial: for a new run. Raises Interrupted, and UserError if the
        checkpoint does not fit.
        """
        self.config, self.workdir, self.guard, self.images = config, workdir, guard, images
        self.unreadable = UnreadableImages()
        data, evaluation = config.data, config.eval
        self.held_out = HeldOutBatches(
            held_out,
            config.seed,
            evaluation.batch_size,
            evaluation.num_images,
            data.uniform_dequantization,
            data.num_workers,
        )
        try:
            first_readable(held_out, 0, [])
        except ReadingFailed as error:  # here rather than at the first evaluation
            raise UserError(f"held-out images: {error}") from None
        sources = {"": images, "held_out_": held_out}
        self.data: dict[str, Any] = {}
        for side, source in sources.items():
            numbers, checksums = identity(source)
            tensors = {key: torch.from_numpy(value) for key, value in checksums.items()}
            self.data |= {side + key: value for key, value in {**numbers, **tensors}.items()}
        self.provenance = provenance(
            config, device=device_name(device), world_size=distributed.world_size()
        )
        saved = checkpoint.read_to_resume(workdir)
        if saved is None:
            known, self.prior = read_training_set(config, images, guard, self.unreadable)
            self.trainer = Trainer(known, device)
            if initial is not None:
                self.trainer.start_from(initial.weights)
                print(
                    f"weights of {initial.record['file']} at step {initial.record['step']}, from {config.training.init_from}"
                )
            origin, changes = (initial.record, initial.changes) if initial else (None, {})
        else:
            known = with_levels(config, saved, FREE_ON_RESUME, f"the checkpoint in {workdir}")
            self.trainer = Trainer(known, device)
            self.prior, changes = resume(config, self.trainer, saved, self.data, sources, workdir)
            origin = saved.get("provenance", {}).get("init_from")
        self.start: dict[str, Any] = {
            "event": "started" if saved is None else "resumed",
            "changed_config": changes,
        }
        self.provenance |= {} if origin is None else {"init_from": origin}
        for key, change in changes.items():
            print(f"config.{key} was {change}")
        if distributed.is_main():
            with atomic_write(workdir / RUN_CONFIG) as temporary:
                temporary.write_text(
                    json.dumps({**config.to_dict(), "provenance": self.provenance}, indent=2) + "\n"
                )

    def due(self, freq: int) -> bool:
        """Whether something that happens every `freq` steps, and at the end, happens now."""
        return self.trainer.step % freq == 0 or self.trainer.step == self.config.training.n_iters

    def calibrate(self) -> None:
        """Measure the reverse kernels of the averaged weights, unless that was done at this step.

        A collective function. Raises Interrupted.
        """
        config, trainer = self.config, self.trainer
        process = trainer.process
        if self.calibration_step == trainer.step or not process.measures_calibration:
            return
        assert isinstance(process, GaussianProcess)
        self.guard.check_all()
        data, batch_size = config.data, config.eval.batch_size
        images = calibration_images(
            self.images, config.training.noise_images, data.uniform_dequantization
        )
        with trainer.ema.swapped_in(trainer.model):
            self.calibration = calibrate(
                process,
                trainer.model.eval(),
                trainer.precision,
                images,
                config.seed,
                batch_size,
                stop=lambda: self.guard.received is not None,
            )
        self.guard.check_all()
        self.calibration_step = trainer.step

    def numbered_path(self) -> Path:
        """Where the numbered checkpoint of this step is, or would be."""
        # Rounded up: a last step between two snapshots has a number of its own, and never 0, which
        # means "newest".
        number = math.ceil(self.trainer.step / self.config.training.snapshot_freq)
        return snapshots.free_number(self.workdir, number, self.trainer.step)

    def snapshot(self) -> None:
        """Write the checkpoint to resume from, then a numbered one.

        A collective function. Raises Interrupted.
        """
        training, step = self.config.training, self.trainer.step
        self.calibrate()
        if self.trainer.nonfinite_in_a_row == 0 or step == training.n_iters:
            self.save()
        if distributed.is_main():
            contents = self._contents()
            if not training.snapshot_full:
                contents = snapshots.for_sampling(contents)
            checkpoint.write(self.numbered_path(), contents)
            snapshots.delete_all_but(self.workdir, training.keep_snapshots)

    def save(self) -> None:
        """Write the checkpoint to resume from.

        Raises UserError if that fails, or if the weights are not finite.
        """
        if distributed.is_main():
            checkpoint.write_meta(self.workdir, self._contents())

    def _contents(self) -> Contents:
        """All that is in a checkpoint, as plain data."""
        if not self.trainer.all_finite():
            raise UserError(
                diverged(
                    self,
                    "weights or averages are not finite, and not saved; earlier checkpoints are intact",
                )
            )
        schedule = self.trainer.config.model.blur_schedule
        return {
            **self.trainer.state_dict(),
            "config": to_json(self.config),
            "sigma_B": None
            if isinstance(schedule, str)
            else torch.tensor(schedule, dtype=torch.float64),
            "data": self.data,
            "prior": self.prior.state_dict(),
            "calibration": self.calibration if self.calibration_step == self.trainer.step else None,
            "provenance": self.provenance,
        }


def diverged(run: Run, what: str) -> str:
    """A message about weights that went astray."""
    advice = f"The same command with a lower config.optim.lr = {run.config.optim.lr:g} may help"
    return f"step {run.trainer.step}: {what}. {advice}"


def read_training_set(
    config: ConfigDict, images: ImageSource, guard: InterruptionGuard, unreadable: UnreadableImages
) -> tuple[ConfigDict, Prior]:
    """The configuration with its blur levels, matched to the training images if it says so, and the
    prior, from one pass.

    Raises Interrupted, ReadingFailed if no image can be read, and UserError if no levels can be
    matched.
    """
    known, moments = settled(config), DCTMoments(*images.shape)
    matched = known.model.blur_schedule == MATCHED

    def each(batch: torch.Tensor) -> None:
        guard.check()
        if matched:
            moments.add(batch)

    process = build_process(
        with_schedule(known, LOG) if matched else known
    )  # the prior depends on the last level alone
    with guard.until_interrupted():
        prior = process.build_prior(training_images(images, config, unreadable, "the prior", each))
    unreadable.report(len(images), "training images")
    prior = prior.gathered(distributed.gather_rows)
    if len(prior) == 0:
        raise none_readable(sorted(unreadable))
    return matched_to(config, share_moments(moments)) if matched else known, prior


def resume(
    config: ConfigDict,
    trainer: Trainer,
    saved: Contents,
    data: dict[str, Any],
    sources: Mapping[str, ImageSource],
    workdir: Path,
) -> tuple[Prior, dict[str, str]]:
    """Load a checkpoint into `trainer`. Returns its prior, and what has changed in the
    configuration since.

    data: the identity of the images; sources: those to train on, "", and "held_out_". Raises
    UserError if the checkpoint is one of other images or another model.
    """
    where = f"the checkpoint in {workdir}"
    before = saved["data"]  # earlier versions had fewer keys
    other = [
        key
        for key, value in data.items()
        if isinstance(value, int) and before.get(key, value) != value
    ]
    if other:
        side = "held_out_" if other[0].startswith("held_out_") else ""
        what = "evaluated on other held-out" if side else "trained on other"
        differs = [f"{before[f'{side}num_images']} then, {data[f'{side}num_images']} now"]
        if f"{side}names" in before:
            checksums = [
                {key: of[side + key].numpy() for key in ("names", "pixels")}
                for of in (data, before)
            ]
            differs.append(describe_change(sources[side], *checksums))
        elif f"{side}names_crc32" in other:
            differs.append("other names or another order")
        elif f"{side}pixels_crc32" in other:
            differs.append("the same names, other pixels")
        raise UserError(
            f"{where} was {what} images than {config.data.dataset!r} now has ({', '.join(differs)}): restore them, or "
            f"choose another --workdir; there config.training.init_from={workdir} goes on with these images"
        )
    changes = differences(saved["config"], config)
    if config.training.init_from and (change := changes.get("training.init_from")) is not None:
        raise UserError(
            f"config.training.init_from was {change}: {where} did not start from that; choose another --workdir"
        )
    precision = saved.get("precision", trainer.precision.name)
    # What "auto" chose when the run began stays, on whatever processor it goes on.
    asked_for = config.optim.amp_dtype != "auto" or changes.keys() & {
        "optim.automatic_mp",
        "optim.amp_dtype",
    }
    if precision != trainer.precision.name and not asked_for:
        reason = (
            f"as before; config.optim.amp_dtype = 'auto' would choose {trainer.precision.name} here"
        )
        trainer.compute_in(Precision.named(trainer.device, precision, reason))
    try:
        trainer.load_state_dict(saved)
        prior = trainer.process.prior_from_state(saved["prior"])
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"{where} does not fit its own configuration: {one_line(error)}") from None
    print(f"continuing from step {trainer.step}")
    return prior, changes
