"""The training loop: data in; metrics, pictures and checkpoints out; resumable at any step."""

import fcntl
import json
import math
import time
import warnings
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict
from tqdm import tqdm

from model_code.prior import PriorBank
from scripts import checkpoint, distributed
from scripts.config import FREE_ON_RESUME, differences, refuse_differences, to_json, validate
from scripts.data.datasets import load_images
from scripts.data.images import ImageSource, names_crc32
from scripts.data.loader import Batch, HeldOutBatches, ReadingFailed, TrainBatches, clean_batches, none_readable, train_loader
from scripts.device import device_name
from scripts.errors import UserError
from scripts.io import cannot_write, make_directory, replacing
from scripts.progress import TrainingProgress, duration, progress_bar
from scripts.provenance import provenance
from scripts.sampling.sampler import Sampler, sample_set
from scripts.tools.report import write_report
from scripts.training.diagnosis import save_diagnosis
from scripts.training.interruption import Interrupted, InterruptionGuard
from scripts.training.metrics import LossWindow, MetricsWriter
from scripts.training.plan import describe
from scripts.training.step import StepResult, Trainer, held_out_losses

STEPS_BEFORE_FORECAST = 20


def train(config: ConfigDict, workdir: Path) -> int:
    """Train as `config` says, in `workdir`, from its newest checkpoint if it has one. Returns the exit code.

    Raises UserError, before anything is written, for a configuration or data that cannot be trained on.
    """
    validate(config)
    check_shares(config)
    device = distributed.device(config.device)
    train_images = load_images(config.data, "train")
    held_out_images = load_images(config.data, "held_out")
    distributed.barrier()  # all can read them
    make_directory(workdir, "--workdir")
    with exclusive(workdir), InterruptionGuard() as guard:
        run = TrainingRun(config, workdir, device, guard)
        try:
            run.prepare(train_images)
            first_step = run.trainer.step
            if distributed.is_main():
                print(describe(config, run.trainer.precision, len(train_images), len(held_out_images), first_step), flush=True)
                if distributed.world_size() > 1:
                    share = config.training.batch_size // distributed.world_size()
                    print(f"processes    {distributed.world_size()}, with {share} images of a batch each", flush=True)
            run.loop(train_images, held_out_images)
        except Interrupted as interruption:
            if run.prior is None:
                print(f"{interruption}: stopped before there was anything to save")
            else:
                run.save()
                print(f"{interruption}: saved at step {run.trainer.step}; the same command goes on from there")
            return interruption.exit_code
        except ReadingFailed as error:
            if run.prior is None or not distributed.is_main():  # process 0, amid a step perhaps, cannot save when another fails
                raise
            run.save()
            raise UserError(f"{error}. Saved at step {run.trainer.step}; the same command goes on from there") from None
    if first_step >= config.training.n_iters:
        print(f"already finished at step {first_step}; a larger --config.training.n_iters would go on: {workdir}")
    else:
        print(f"finished at step {run.trainer.step}: {workdir}")
    return 0


def check_shares(config: ConfigDict) -> None:
    """Raise UserError if a batch cannot be shared out evenly."""
    training = config.training
    if training.batch_size % (distributed.world_size() * training.accumulation_steps):
        raise UserError(
            f"config.training.batch_size = {training.batch_size}: must be a multiple of "
            f"{distributed.world_size() * training.accumulation_steps}, for {distributed.world_size()} processes and "
            f"config.training.accumulation_steps = {training.accumulation_steps}"
        )


@contextmanager
def exclusive(workdir: Path) -> Iterator[None]:
    """Refuse a second training in the same directory. The lock dies with the process, process 0 of several, however it ends."""
    if not distributed.is_main():
        yield
        return
    try:
        lock = (workdir / ".lock").open("w")
    except OSError as error:
        raise cannot_write(workdir, "--workdir", error) from None
    with lock:
        try:
            # Not flock, which processes that read images would inherit, and hold for seconds after a training was killed.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(f"--workdir={workdir}: another training is running there; choose another, or wait") from None
        yield


class TrainingRun:
    """One run directory and what goes on in it."""

    prior: PriorBank | None = None
    """Set by `prepare`; from then on there is something to save."""

    def __init__(self, config: ConfigDict, workdir: Path, device: torch.device, guard: InterruptionGuard) -> None:
        self.config, self.workdir, self.guard = config, workdir, guard
        self.trainer = Trainer(config, device)
        self.unreadable: set[str] = set()
        self.provenance = provenance(config, device=device_name(device), world_size=distributed.world_size())
        self.start: dict[str, Any] = {"event": "started"}
        self.overdue = False  # a save that waits for the end of bad steps

    def prepare(self, train_images: ImageSource) -> None:
        """Continue from the newest checkpoint, or make the prior bank and start."""
        with distributed.main_first():  # which puts a damaged one aside
            saved = checkpoint.read_to_resume(self.workdir)
        self.data = {
            "num_images": len(train_images),
            "names_crc32": names_crc32(map(train_images.name, range(len(train_images)))),
        }
        if saved is None:
            with self._until_interrupted():
                bank = PriorBank.from_batches(self._clean_batches(train_images), self.trainer.blur)
            self._share_unreadable()
            bank = replace(bank, coefficients=distributed.gather_rows(bank.coefficients))
            if len(bank) == 0:
                raise none_readable(sorted(self.unreadable))
            self.prior = bank
        else:
            refuse_differences(saved["config"], self.config, FREE_ON_RESUME, f"the checkpoint in {self.workdir}")
            if saved["data"] != self.data:
                raise UserError(
                    f"the checkpoint in {self.workdir} was trained on other images than {self.config.data.dataset!r} now has "
                    f"({saved['data']['num_images']} then, {len(train_images)} now): restore them, or choose another --workdir"
                )
            try:
                self.trainer.load_state_dict(saved)
            except (ValueError, RuntimeError) as error:
                reason = " ".join(str(error).split())
                raise UserError(f"the checkpoint in {self.workdir} does not fit its own configuration: {reason}") from None
            self.prior = checkpoint.prior_bank(saved, self.config, self.workdir)
            print(f"continuing from step {self.trainer.step}")
            changes = differences(saved["config"], self.config)
            self.start = {"event": "resumed", "changed_config": changes}
            for key, change in changes.items():
                print(f"config.{key} was {change}")
        if distributed.is_main():
            with replacing(self.workdir / "config.json") as temporary:
                temporary.write_text(json.dumps({**self.config.to_dict(), "provenance": self.provenance}, indent=2) + "\n")

    def _clean_batches(self, images: ImageSource) -> Iterator[torch.Tensor]:
        data = self.config.data
        batches = clean_batches(images, self.config.eval.batch_size, data.num_workers, data.uniform_dequantization)
        with progress_bar(len(distributed.shard(range(len(images)))), "image", "reading images for the prior") as bar:
            for batch in batches:
                self.guard.check()
                self._note_unreadable(batch)
                bar.update(len(batch.images))
                yield batch.images

    def loop(self, train_images: ImageSource, held_out_images: ImageSource) -> None:
        """Steps until n_iters, with everything that is due on the way."""
        config, trainer = self.config, self.trainer
        training, data = config.training, config.data
        positions = distributed.shard(range(training.batch_size))
        batches = TrainBatches(
            train_images, config.seed, training.batch_size, data.random_flip, data.uniform_dequantization, positions
        )
        self.held_out = HeldOutBatches(
            held_out_images,
            config.seed,
            config.eval.batch_size,
            config.eval.num_images,
            data.uniform_dequantization,
            data.num_workers,
        )
        window = LossWindow(config.model.K)
        first_step = trainer.step
        pin_memory = trainer.device.type == "cuda"
        with (
            MetricsWriter(self.workdir, trainer.step) as self.metrics,
            TrainingProgress(trainer.step, training.n_iters) as self.progress,
            closing(train_loader(batches, trainer.step, training.n_iters, data.num_workers, pin_memory)) as loader,
        ):
            self.metrics.event(first_step, **self.start, **self.provenance)
            if trainer.step > 0:
                # A signal may have come between the save at this step and what else was due.
                self.show(only_missing=True)
            lap = time.monotonic()
            for batch in loader:
                self._note_unreadable(batch)
                result = self._step(batch)
                if trainer.step == first_step + 1:
                    self._note_compiling(time.monotonic() - lap)
                    started = time.monotonic()
                window.add(result, seconds=time.monotonic() - lap)
                self.progress.step_done(result.losses.mean().item())
                if not result.finite:
                    self._note_bad(batch, result, train_images)
                if self._due(training.log_freq):
                    self._share_unreadable()
                    row = window.summary()
                    lr = trainer.optimizer.param_groups[0]["lr"]
                    counts = {"bad_steps": trainer.bad_steps, "unreadable_images": len(self.unreadable)}
                    self.metrics.write(trainer.step, **row, lr=lr, **counts)
                    self.progress.report(trainer.step, row.get("loss", math.nan))
                if trainer.step - first_step == STEPS_BEFORE_FORECAST:
                    self._forecast((time.monotonic() - started) / (STEPS_BEFORE_FORECAST - 1))
                self._save_what_is_due()
                self._stop_together()
                self.show()
                lap = time.monotonic()

    def _step(self, batch: Batch) -> StepResult:
        """One step; where float16 overflows, the same one again with a smaller loss scale."""
        while (result := self.trainer.train_step(batch.images)).overflowed:
            pass
        return result

    def _note_bad(self, batch: Batch, result: StepResult, train_images: ImageSource) -> None:
        """Say that a bad step was skipped. Raises UserError, with the diagnosis on disk, if there were too many in a row."""
        trainer, most = self.trainer, self.config.training.max_bad_steps
        what = f"loss {result.losses.mean().item():g}, gradient {result.grad_norm:g}"
        if trainer.bad_in_a_row < most:
            tqdm.write(f"warning: step {trainer.step} was bad and is skipped ({what}; {trainer.bad_in_a_row} in a row)")
            return
        whole = replace(batch, images=distributed.gather_rows(batch.images), indices=distributed.gather_rows(batch.indices))
        if not distributed.is_main():
            distributed.barrier()  # until process 0, the only one to write and to fail, ends all
        path = save_diagnosis(self.workdir, trainer, whole, result, train_images.name)
        raise UserError(
            f"step {trainer.step}: {what}, the last of {trainer.bad_in_a_row} bad steps in a row "
            f"(config.training.max_bad_steps = {most}); the last checkpoint is from before them, and {path} says more. "
            f"The same command with a lower config.optim.lr = {self.config.optim.lr:g} may help"
        )

    def _due(self, freq: int) -> bool:
        """Whether something that happens every `freq` steps, and at the end, happens now."""
        return self.trainer.step % freq == 0 or self.trainer.step == self.config.training.n_iters

    def _save_what_is_due(self) -> None:
        """The numbered checkpoint on time; the other one not amid bad steps, which may mean that the weights went wrong."""
        if not distributed.is_main():
            return
        training = self.config.training
        if self._due(training.snapshot_freq):
            # Rounded up: a last step between two snapshots has a number of its own, and never 0, which means "newest".
            number = math.ceil(self.trainer.step / training.snapshot_freq)
            checkpoint.write(checkpoint.numbered_path(self.workdir, number), self._contents())
        self.overdue |= self._due(training.snapshot_freq) or self._due(training.snapshot_freq_for_preemption)
        if self.overdue and (self.trainer.bad_in_a_row == 0 or self.trainer.step == training.n_iters):
            self.save()

    def save(self) -> None:
        """Write the checkpoint to resume from. Raises UserError if that cannot be, or if the weights are not finite."""
        if distributed.is_main():
            checkpoint.write_meta(self.workdir, self._contents())
            self.overdue = False

    def _contents(self) -> checkpoint.Contents:
        assert self.prior is not None
        if not self.trainer.all_finite():
            raise UserError(
                f"step {self.trainer.step}: weights or averages are not finite, and not saved; the last checkpoint is intact. "
                f"The same command with a lower config.optim.lr = {self.config.optim.lr:g} may help"
            )
        return {
            **self.trainer.state_dict(),
            "config": to_json(self.config),
            "data": self.data,
            "prior": self.prior.state_dict(),
            "provenance": self.provenance,
        }

    def show(self, only_missing: bool = False) -> None:
        """Evaluate and sample if that is due; with `only_missing` unless it was done before the run was interrupted."""
        step, training = self.trainer.step, self.config.training
        if self._due(training.eval_freq) and not (only_missing and step in self.metrics.evaluated_steps):
            self.evaluate()
        directory = self.workdir / "samples" / f"iter_{step}"
        if self._due(training.sampling_freq) and not (
            only_missing and distributed.from_main((directory / "process.mp4").exists())
        ):
            self.sample(directory)

    def evaluate(self) -> None:
        """The loss of the averaged weights over held-out images, with its standard error."""
        losses = [torch.empty(0)]
        with self._until_interrupted(), self.trainer.ema.swapped_in(self.trainer.model):
            for batch in self.held_out:
                self.guard.check()
                self._note_unreadable(batch)
                if len(batch.images):
                    losses.append(held_out_losses(self.trainer, batch.images, batch.indices))
        self._share_unreadable()
        loss = distributed.gather_rows(torch.cat(losses))
        if len(loss) == 0:
            raise none_readable(sorted(self.unreadable))
        row = {"eval_loss": loss.mean().item(), "eval_num_images": len(loss)}
        if len(loss) > 1:
            row["eval_loss_standard_error"] = loss.std().item() / math.sqrt(len(loss))
        self.metrics.write(self.trainer.step, **row)

    def sample(self, directory: Path) -> None:
        """Pictures of samples from the averaged weights, all drawn by process 0."""
        config, trainer = self.config, self.trainer
        assert self.prior is not None
        sampler = Sampler.from_config(config, trainer.model.eval(), self.prior, trainer.device, delta=None, seed=None)
        with self._until_interrupted(), trainer.ema.swapped_in(trainer.model):
            if distributed.is_main():
                sample_set(directory, sampler, range(config.training.num_samples), on_step=lambda k, u_k: self.guard.check())
        self.progress.say(f"step {trainer.step}: samples in {directory}")
        self.report()

    def report(self) -> None:
        """Bring the run's page up to date. Training goes on without a page, whatever the reason."""
        if not distributed.is_main():
            return
        try:
            write_report(self.workdir)
        except Exception as error:
            warnings.warn(f"no index.html at step {self.trainer.step}: {type(error).__name__}: {error}", stacklevel=2)

    def _stop_together(self) -> None:
        """Where a signal has come to any process raise Interrupted in all of them: call where it is safe to stop."""
        received = max(distributed.gather(self.guard.received or 0))
        if received:
            raise Interrupted(received)

    @contextmanager
    def _until_interrupted(self) -> Iterator[None]:
        """For work in which processes do not meet: a signal ends it in this one, and then all stop here."""
        with suppress(Interrupted):
            yield
        self._stop_together()

    def _note_unreadable(self, batch: Batch) -> None:
        self._name_unreadable(batch.unreadable)

    def _share_unreadable(self) -> None:
        """Tell process 0, which counts and warns, what the others could not read."""
        if distributed.world_size() > 1:
            for names in distributed.gather(sorted(self.unreadable)):
                self._name_unreadable(names)

    def _name_unreadable(self, names: Collection[str]) -> None:
        """Name every unreadable image once."""
        for name in set(names) - self.unreadable:
            self.unreadable.add(name)
            tqdm.write(f"warning: skipped unreadable image {len(self.unreadable)}: {name}")

    def _note_compiling(self, seconds: float) -> None:
        """The first step is far from typical where it compiles the network."""
        if self.config.compile != "none":
            self.progress.say(f"compiled and did the first step in {duration(seconds)}")

    def _forecast(self, seconds_per_step: float) -> None:
        left = seconds_per_step * (self.config.training.n_iters - self.trainer.step)
        finish = datetime.now() + timedelta(seconds=left)
        self.progress.say(
            f"{seconds_per_step:.3g} s a step: about {duration(left)} to go, finished about {finish:%Y-%m-%d %H:%M} "
            "(evaluation and samples come on top)"
        )
