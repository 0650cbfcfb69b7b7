"""The training loop: images in; metrics, samples and checkpoints out; resumable at any step."""

import json
import math
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict

from scripts.config.checks import validate
from scripts.config.load import to_json
from scripts.data.datasets import load_images
from scripts.data.images import ImageSource, fingerprint
from scripts.data.loader import Batch, HeldOutBatches, ReadingFailed, TrainBatches, none_readable, train_loader
from scripts.errors import UserError
from scripts.estimate import Estimate
from scripts.runtime import distributed
from scripts.runtime.device import device_name
from scripts.runtime.progress import TrainingProgress, warn
from scripts.sampling.measurement import calibrate, images_to_measure
from scripts.sampling.output import sample_set
from scripts.sampling.sampler import make_sampler
from scripts.storage import checkpoint
from scripts.storage.files import atomic_write, make_directory
from scripts.storage.provenance import provenance
from scripts.training.interruption import Interrupted, InterruptionGuard
from scripts.training.log import LossWindow, MetricsWriter, UnreadableImages
from scripts.training.plan import describe
from scripts.training.start import build_prior, exclusive, resume
from scripts.training.step import StepResult, Trainer, held_out_losses


def train(config: ConfigDict, workdir: Path) -> int:
    """Train as `config` says, in `workdir`, from its newest checkpoint if it has one. Returns the exit code.

    Raises UserError, before anything is written, for a configuration or data that cannot be trained on.
    """
    validate(config)
    size, parts = config.training.batch_size, distributed.world_size() * config.training.accumulation_steps
    if size % parts:
        split = f"{distributed.world_size()} processes and config.training.accumulation_steps"
        raise UserError(f"config.training.batch_size = {size}: must be a multiple of {parts}, for {split}")
    device = distributed.device(config.device)
    images = load_images(config.data, "train"), load_images(config.data, "held_out")
    distributed.barrier()  # nothing is written before all processes have found the data
    make_directory(workdir, "--workdir")
    with exclusive(workdir), InterruptionGuard() as guard:
        try:
            run = TrainingRun(config, workdir, device, guard, images)
        except Interrupted as interruption:
            print(f"{interruption}: stopped before there was anything to save")
            return interruption.exit_code
        trainer, first_step = run.trainer, run.trainer.step
        print(describe(config, trainer.precision, len(images[0]), len(images[1]), first_step), flush=True)
        try:
            run.loop()
        except Interrupted as interruption:
            run.save()
            print(f"{interruption}: saved at step {trainer.step}; the same command goes on from there")
            return interruption.exit_code
        except ReadingFailed as error:
            if not distributed.is_main():
                raise
            run.save()
            raise UserError(f"{error}. Saved at step {trainer.step}; the same command goes on from there") from None
    if trainer.step > first_step:
        print(f"finished at step {trainer.step}: {workdir}")
    else:
        print(f"already finished at step {first_step}; a larger --config.training.n_iters would go on: {workdir}")
    return 0


class TrainingRun:
    """A training in one run directory: made from the newest checkpoint, or anew with a prior; then `loop`."""

    measured: dict[str, torch.Tensor] | None = None
    """What reverse kernels are made from, as measured at step `measured_step`."""
    measured_step = -1

    def __init__(
        self, config: ConfigDict, workdir: Path, device: torch.device, guard: InterruptionGuard, images: tuple[ImageSource, ...]
    ) -> None:
        """images: those to train on and those held out. Raises Interrupted, and UserError if the checkpoint does not fit."""
        self.config, self.workdir, self.guard, (self.train_images, held_out_images) = config, workdir, guard, images
        self.trainer, self.unreadable = Trainer(config, device), UnreadableImages()
        data, evaluation = config.data, config.eval
        self.held_out = HeldOutBatches(
            held_out_images, config.seed, evaluation.batch_size, evaluation.num_images, data.uniform_dequantization,
            data.num_workers,
        )  # fmt: skip
        self.data = fingerprint(self.train_images)
        self.provenance = provenance(config, device=device_name(device), world_size=distributed.world_size())
        saved = checkpoint.read_to_resume(workdir)
        if saved is None:
            self.prior = build_prior(self.trainer, self.train_images, guard, self.unreadable)
            self.start: dict[str, Any] = {"event": "started"}
        else:
            self.prior, changes = resume(self.trainer, saved, self.data, workdir)
            self.start = {"event": "resumed", "changed_config": changes}
        if distributed.is_main():
            with atomic_write(workdir / "config.json") as temporary:
                temporary.write_text(json.dumps({**config.to_dict(), "provenance": self.provenance}, indent=2) + "\n")

    def loop(self) -> None:
        """Steps until n_iters, with everything that is due on the way."""
        config, trainer, training, data = self.config, self.trainer, self.config.training, self.config.data
        batches = TrainBatches(
            self.train_images, config.seed, training.batch_size, data.random_flip, data.uniform_dequantization,
            distributed.shard(range(training.batch_size)),
        )  # fmt: skip
        pin_memory = trainer.device.type == "cuda"
        window = LossWindow(config.model.K)
        with (
            MetricsWriter(self.workdir, trainer.step) as self.metrics,
            TrainingProgress(trainer.step, training.n_iters) as self.progress,
            closing(train_loader(batches, trainer.step, training.n_iters, data.num_workers, pin_memory)) as loader,
        ):
            self.metrics.event(trainer.step, **self.start, **self.provenance)
            self.metrics.text(trainer.step, "config", to_json(config))
            if trainer.step > 0:  # a signal may have come between the save at this step and what else was due
                self.show(only_missing=True)
            started = time.monotonic()
            for batch in loader:
                self.unreadable.note(batch.unreadable)
                result = trainer.train_step(batch.images)
                window.add(result, seconds=time.monotonic() - started)
                self.progress.step_done(result.losses.mean().item())
                self._note_nonfinite(batch, result)
                if self._due(training.log_freq):
                    self._log(window)
                self._save_what_is_due()
                if distributed.world_size() == 1 or self._due(training.log_freq):
                    self.guard.check_all()
                self.show()
                started = time.monotonic()

    def _due(self, freq: int) -> bool:
        """Whether something that happens every `freq` steps, and at the end, happens now."""
        return self.trainer.step % freq == 0 or self.trainer.step == self.config.training.n_iters

    def _log(self, window: LossWindow) -> None:
        trainer = self.trainer
        self.unreadable.share()
        row = window.summary()
        counts = {"nonfinite_steps": trainer.nonfinite_steps, "unreadable_images": len(self.unreadable)}
        self.metrics.write(trainer.step, **row, lr=trainer.optimizer.param_groups[0]["lr"], **counts)
        self.progress.report(trainer.step, row.get("loss", math.nan))

    def _note_nonfinite(self, batch: Batch, result: StepResult) -> None:
        """Say that a step was skipped. Raises UserError after too many in a row, with the batch's facts in metrics.jsonl."""
        trainer, most = self.trainer, self.config.training.max_nonfinite_steps
        if result.finite or trainer.nonfinite_in_a_row == 0:  # float16 has not found its loss scale yet
            return
        count, what = trainer.nonfinite_in_a_row, f"loss {result.losses.mean().item():g}, gradient {result.grad_norm:g}"
        if count < most:
            warn(f"step {trainer.step}: {what}: skipped ({count} in a row)")
            return
        names = distributed.gather([self.train_images.name(i) for i in batch.indices.tolist()])
        self.metrics.event(
            trainer.step,
            "stopped",
            precision=trainer.precision.name,
            images=[name for part in names for name in part],
            levels=result.levels.tolist(),
            losses=[str(loss) for loss in result.losses.tolist()],  # as text: JSON has no NaN
            weights_not_finite=[key for key, weight in trainer.model.named_parameters() if not weight.isfinite().all()],
        )
        raise self._diverged(
            f"{what}, the last of {count} non-finite steps in a row (config.training.max_nonfinite_steps = {most}); the last "
            f"checkpoint is from before them, and the last row of {self.workdir / 'metrics.jsonl'} says more"
        )

    def _diverged(self, what: str) -> UserError:
        advice = f"The same command with a lower config.optim.lr = {self.config.optim.lr:g} may help"
        return UserError(f"step {self.trainer.step}: {what}. {advice}")

    def _save_what_is_due(self) -> None:
        """The numbered checkpoint, and the one to resume from unless the step was non-finite: the weights may be the reason."""
        training, step = self.config.training, self.trainer.step
        if self._due(training.snapshot_freq):
            self._calibrate()
            if distributed.is_main():
                # Rounded up: a last step between two snapshots has a number of its own, and never 0, which means "newest".
                path = checkpoint.numbered_path(self.workdir, math.ceil(step / training.snapshot_freq))
                checkpoint.write(path, self._contents())
        save_due = self._due(training.snapshot_freq) or self._due(training.snapshot_freq_for_preemption)
        if save_due and (self.trainer.nonfinite_in_a_row == 0 or step == training.n_iters):
            self.save()

    def save(self) -> None:
        """Write the checkpoint to resume from. Raises UserError if that fails, or if the weights are not finite."""
        if distributed.is_main():
            checkpoint.write_meta(self.workdir, self._contents())

    def _contents(self) -> checkpoint.Contents:
        """All that is in a checkpoint, as plain data."""
        if not self.trainer.all_finite():
            raise self._diverged("weights or averages are not finite, and not saved; the last checkpoint is intact")
        return {
            **self.trainer.state_dict(),
            "config": to_json(self.config),
            "data": self.data,
            "prior": self.prior.state_dict(),
            "noise": self.measured if self.measured_step == self.trainer.step else None,
            "provenance": self.provenance,
        }

    def _calibrate(self) -> None:
        """Measure the reverse kernels of the averaged weights, unless that was done at this step. A collective function."""
        config, trainer = self.config, self.trainer
        if self.measured_step == trainer.step:
            return
        images = images_to_measure(self.train_images, config.training.noise_images, config.data.uniform_dequantization)
        with trainer.ema.swapped_in(trainer.model):
            model = trainer.model.eval()
            measured = calibrate(trainer.process, model, trainer.precision, images, config.seed, config.eval.batch_size)
        self.measured = None if measured is None else dict(measured)
        self.measured_step = trainer.step

    def show(self, only_missing: bool = False) -> None:
        """Evaluate and sample if that is due; with `only_missing` unless it was done before the run was interrupted."""
        step, training = self.trainer.step, self.config.training
        if self._due(training.eval_freq) and not (only_missing and step in self.metrics.evaluated_steps):
            self.evaluate()
        directory = self.workdir / "samples" / f"iter_{step}"
        sampled = only_missing and distributed.from_main((directory / "process.mp4").exists())
        if self._due(training.sampling_freq) and not sampled:
            self.sample(directory)

    def evaluate(self) -> None:
        """The loss of the averaged weights over held-out images, with its standard error."""
        losses = [torch.empty(0)]
        with self.guard.until_interrupted(), self.trainer.ema.swapped_in(self.trainer.model):
            for batch in self.held_out:
                self.guard.check()
                self.unreadable.note(batch.unreadable)
                if len(batch.images):
                    losses.append(held_out_losses(self.trainer, batch.images, batch.indices))
        self.unreadable.share()
        loss = distributed.gather_rows(torch.cat(losses))
        if len(loss) == 0:
            raise none_readable(sorted(self.unreadable))
        estimate = Estimate.of(loss)
        row = {"eval_loss": estimate.value, "eval_num_images": estimate.num_images}
        if math.isfinite(estimate.standard_error):
            row["eval_loss_standard_error"] = estimate.standard_error
        self.metrics.write(self.trainer.step, **row)

    def sample(self, directory: Path) -> None:
        """Pictures of samples from the averaged weights, drawn by process 0, in `directory` and in TensorBoard."""
        config, trainer = self.config, self.trainer
        if config.model.sampling_noise != "isotropic":
            self._calibrate()
        with self.guard.until_interrupted(), trainer.ema.swapped_in(trainer.model):
            if distributed.is_main():
                model = trainer.model.eval()
                sampler = make_sampler(config, model, trainer.process, self.prior, trainer.precision, self.measured)
                sample_set(directory, sampler, range(config.training.num_samples), on_step=lambda k, u_k: self.guard.check())
                self.metrics.image(trainer.step, "samples", directory / "final.png")
        self.progress.say(f"step {trainer.step}: samples in {directory}")
