"""Training in one run directory, resumable at any step: prepare, loop, save.

Images come in; metrics, samples and checkpoints go out.
"""

from __future__ import annotations

import copy
import json
import math
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
from ml_collections import ConfigDict

from model_code.gaussian import GaussianProcess
from model_code.prior import Prior
from model_code.unet import MODEL_KEYS
from scripts.config.load import RUN_CONFIG, to_json
from scripts.config.paths import user_path
from scripts.config.resolve import (
    MATCHED,
    Experiment,
    config_warnings,
    differences,
    refuse_differences,
    resolve,
    validate,
)
from scripts.data.datasets import load_images, require_outside_data
from scripts.data.images import ImageSource, describe_change, identity
from scripts.data.labels import class_counts, count_classes
from scripts.data.loader import (
    Batch,
    OrderedBatches,
    ReadingFailed,
    TrainBatches,
    UnreadableImages,
    first_readable,
    none_readable,
    train_loader,
)
from scripts.data.training_set import (
    build_prior,
    dct_moments,
    matched_levels,
    share_moments,
    training_images,
)
from scripts.errors import UserError, line_for, one_line
from scripts.estimate import Estimate
from scripts.runtime import distributed
from scripts.runtime.device import Precision, choose_threads, device_name, resolve_device
from scripts.runtime.progress import TrainingProgress, optional, say, warn
from scripts.sampling.calibration import calibrate, calibration_images
from scripts.sampling.output import sample_set
from scripts.sampling.sampler import make_sampler
from scripts.storage import checkpoint
from scripts.storage.checkpoint import Contents
from scripts.storage.files import atomic_write, exclusive, make_directory, write_text
from scripts.storage.record import provenance
from scripts.training.data_picture import DataPicture
from scripts.training.log import LossWindow, MetricsWriter
from scripts.training.plan import describe
from scripts.training.step import StepResult, Trainer, held_out_losses

NETWORK = {
    "data.num_channels",
    "model.network",
    *(f"model.{name}" for name in MODEL_KEYS if name != "dropout"),
}
"""Keys that say what is computed with the weights; not all of them show in shapes."""

Item = TypeVar("Item")


def train(config: ConfigDict, workdir: Path) -> int:
    """Train as `config` says, in `workdir`, from its newest checkpoint if it has one. Returns the
    exit code.

    Raises UserError, before anything is written, for a configuration or data that cannot be trained
    on.
    """
    validate(config)
    require_divisible_batch(config.training)
    device = resolve_device(config.device)
    require_outside_data(workdir, "--workdir", config.data)
    images = load_images(config.data, "train"), load_images(config.data, "held_out")
    config = count_classes(config, *images)
    experiment = initial = None
    if not checkpoint.existing(workdir):  # a run that is continued has levels of its own
        experiment = resolve(config)
        if config.training.init_from:
            initial = read_initial_weights(experiment)
    distributed.barrier()  # nothing is written before all processes have opened the data
    make_directory(workdir, "--workdir")
    busy = f"--workdir={workdir}: another training is running there; choose another, or wait"
    with exclusive(workdir, busy), InterruptionGuard() as guard:
        try:
            run = prepare(config, workdir, device, guard, *images, experiment, initial)
            del initial  # as large as the network
        except Interrupted as interruption:
            print(f"{interruption}: stopped before there was anything to save")
            return interruption.exit_code
        return finish(run)


def require_divisible_batch(training: ConfigDict) -> None:
    """Raise UserError unless processes and microbatches have equal parts of a batch."""
    processes = distributed.world_size()
    microbatches = processes * training.accumulation_steps
    if training.batch_size % microbatches:
        split = f"{processes} processes and config.training.accumulation_steps"
        needed = f"must be a multiple of {microbatches}, for {split}"
        raise UserError(f"config.training.batch_size = {training.batch_size}: {needed}")


def finish(run: Run) -> int:
    """Train to the end; save if a signal or an error comes before. Return the exit code."""
    trainer, first_step = run.trainer, run.trainer.step
    for line in config_warnings(run.config):
        warn(line)
    sources = run.images, run.held_out.source
    print(describe(run.experiment, trainer.precision, *sources, first_step), flush=True)
    try:
        loop(run)
    except Interrupted as interruption:
        run.save()
        saved = f"saved at step {trainer.step}"
        print(f"{interruption}: {saved}; the same command continues from there")
        return interruption.exit_code
    except (ReadingFailed, MemoryError, RuntimeError, OSError) as error:
        reason = line_for(error)
        if reason is None or not distributed.is_main():
            raise
        saved = "Not saved, as it happened within an update"
        if not trainer.updating:
            run.save()
            saved = f"Saved at step {trainer.step}"
        advice = "the same command continues from the last save"
        raise UserError(f"{reason}. {saved}; {advice}") from None
    if trainer.step > first_step:
        print(f"finished at step {trainer.step}: {run.workdir}")
    else:
        more = "a larger --config.training.n_iters would continue it"
        print(f"already finished at step {first_step}; {more}: {run.workdir}")
    return 0


def prepare(
    config: ConfigDict,
    workdir: Path,
    device: torch.device,
    guard: InterruptionGuard,
    images: ImageSource,
    held_out: ImageSource,
    experiment: Experiment | None,
    initial: InitialWeights | None,
) -> Run:
    """Begin a run, from `initial` if given, or continue from its newest checkpoint.

    experiment: of a new run. Raises Interrupted, and UserError if the images cannot be read or the
    checkpoint does not fit.
    """
    try:
        first_readable(held_out, 0)
    except ReadingFailed as error:  # here rather than at the first evaluation
        raise UserError(f"held-out images: {error}") from None
    sources = {"": images, "held_out_": held_out}
    of_images = _identities(sources)
    unreadable, saved = UnreadableImages(), checkpoint.read_to_resume(workdir)
    choose_threads(saved.get("threads") if saved else None)
    changes: Mapping[str, str] = {}
    origin = None
    if saved is None:
        experiment = experiment or resolve(config)
        if config.model.blur_schedule == MATCHED:
            experiment = _match_levels(config, images, guard, unreadable)
        prior = _build_prior(experiment, images, guard, unreadable)
        trainer = Trainer(experiment, device)
        if initial is not None:
            trainer.start_from(initial.weights)
            changes, origin = initial.changes, initial.record
            start = f"{origin['file']} at step {origin['step']}"
            print(f"weights of {start}, from {config.training.init_from}")
    else:
        where = f"the checkpoint in {workdir}"
        experiment = resolve(config, saved, where)
        _refuse_other_images(saved["data"], of_images, sources, config, workdir)
        changes = differences(saved["config"], config)
        trainer = Trainer(experiment, device)
        prior = _resume(trainer, saved, changes, where)
        origin = saved.get("provenance", {}).get("init_from")
    for key, change in changes.items():
        print(f"config.{key} was {change}")
    facts = provenance(config, device=device_name(device), world_size=distributed.world_size())
    to_evaluate = OrderedBatches(
        held_out,
        config.eval.batch_size,
        config.data.num_workers,
        config.data.uniform_dequantization,
        config.eval.num_images,
        config.seed,
    )
    run = Run(
        config=config,
        experiment=experiment,
        workdir=workdir,
        guard=guard,
        images=images,
        held_out=to_evaluate,
        unreadable=unreadable,
        data=of_images,
        prior=prior,
        trainer=trainer,
        event={
            "event": "resumed" if saved else "started",
            "changed_config": dict(changes),
            "training_images": len(images),
            "parameters": sum(weight.numel() for weight in trainer.model.parameters()),
        },
        provenance=facts if origin is None else facts | {"init_from": origin},
    )
    if distributed.is_main():
        contents = {**config.to_dict(), "provenance": run.provenance}
        write_text(workdir / RUN_CONFIG, json.dumps(contents, indent=2) + "\n")
    return run


def _identities(sources: Mapping[str, ImageSource]) -> dict[str, Any]:
    """Return the `identity` of images as plain data, with names that begin with the keys of
    `sources`.
    """
    of_images: dict[str, Any] = {}
    for side, source in sources.items():
        numbers, checksums = identity(source)
        of_images |= {side + key: number for key, number in numbers.items()}
        of_images |= {side + key: torch.from_numpy(value) for key, value in checksums.items()}
    return of_images


def _match_levels(
    config: ConfigDict, images: ImageSource, guard: InterruptionGuard, unreadable: UnreadableImages
) -> Experiment:
    """Resolve the configuration of a new run with levels computed from its images.

    Raises Interrupted, ReadingFailed if no image can be read, and UserError if no levels match.
    """
    with guard.until_interrupted():
        batches = training_images(images, config, unreadable, "their spectrum")
        moments = dct_moments(guard.checked(batches), images.shape)
    moments = share_moments(moments)
    if moments.count == 0:
        raise none_readable(sorted(unreadable))
    return resolve(config, matched=matched_levels(config.model, moments))


def _build_prior(
    experiment: Experiment,
    images: ImageSource,
    guard: InterruptionGuard,
    unreadable: UnreadableImages,
) -> Prior:
    """Build the prior from all training images.

    Raises Interrupted, and ReadingFailed if no image can be read.
    """
    with guard.until_interrupted():
        batches = training_images(images, experiment.config, unreadable, "the prior")
        conditional = experiment.config.model.class_conditional
        prior = build_prior(experiment.process, guard.checked(batches), conditional)
    unreadable.report(len(images), "training images")
    prior = prior.gathered(distributed.gather_rows)
    if len(prior) == 0:
        raise none_readable(sorted(unreadable))
    return prior


def _refuse_other_images(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    sources: Mapping[str, ImageSource],
    config: ConfigDict,
    workdir: Path,
) -> None:
    """Raise UserError if the identity of images in a run's checkpoint is one of other images.

    sources: the images to train on, "", and "held_out_".
    """
    numbers = {key: value for key, value in now.items() if isinstance(value, int)}
    # Earlier versions had fewer keys.
    other = [key for key, value in numbers.items() if before.get(key, value) != value]
    if not other:
        return
    side = "held_out_" if other[0].startswith("held_out_") else ""
    what = "evaluated on other held-out" if side else "trained on other"
    counts = f"{before[f'{side}num_images']} then, {now[f'{side}num_images']} now"
    reason = ""
    if f"{side}names" in before:
        keys = ("names", "pixels")
        checksums = [{key: of[side + key].numpy() for key in keys} for of in (now, before)]
        reason = f", {describe_change(sources[side], *checksums)}"
    if {*other} <= {"labels_crc32", "held_out_labels_crc32"}:
        reason = ", other labels"
    raise UserError(
        f"the checkpoint in {workdir} was {what} images than {config.data.dataset!r} now has "
        f"({counts}{reason}): restore them, or choose another --workdir; there "
        f"config.training.init_from={workdir} trains on these images"
    )


def _resume(trainer: Trainer, saved: Contents, changes: Mapping[str, str], where: str) -> Prior:
    """Load a checkpoint, from `where`, into `trainer`, and return its prior.

    changes: what is new in the configuration. Raises UserError if the checkpoint does not fit.
    """
    config = trainer.config
    if config.training.init_from and (change := changes.get("training.init_from")) is not None:
        shown = f"config.training.init_from was {change}"
        raise UserError(f"{shown}: {where} did not start from that; choose another --workdir")
    precision = saved.get("precision", trainer.precision.name)
    # What "auto" chose when the run began stays, on whatever processor it continues.
    amp_changed = changes.keys() & {"optim.automatic_mp", "optim.amp_dtype"}
    asked_for = config.optim.amp_dtype != "auto" or amp_changed
    if precision != trainer.precision.name and not asked_for:
        would = f"config.optim.amp_dtype = 'auto' would choose {trainer.precision.name} here"
        trainer.compute_in(Precision.named(trainer.device, precision, f"as before; {would}"))
    try:
        trainer.load_state_dict(saved)
        prior = trainer.process.prior_from_state(saved["prior"])
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"{where} does not fit its own configuration: {one_line(error)}") from None
    print(f"continuing from step {trainer.step}")
    return prior


@dataclass(frozen=True)
class InitialWeights:
    """Averages of a checkpoint, which both weights and averages of a new run start from."""

    weights: Mapping[str, torch.Tensor]
    """By name, on the CPU."""
    changes: Mapping[str, str]
    """Settings of model and data that were others there, as `differences` names them; none for the
    release's.
    """
    record: Mapping[str, Any]
    """Which checkpoint it was, as plain data."""


def read_initial_weights(experiment: Experiment) -> InitialWeights:
    """Read the checkpoint, or the newest in the run directory, that config.training.init_from
    names.

    Raises UserError if there is none, or if it does not fit the network.
    """
    config = experiment.config
    shown = f"config.training.init_from = {config.training.init_from!r}"
    place = user_path(config.training.init_from, "config.training.init_from")
    newest = checkpoint.read_newest(place)
    if newest is None:
        raise UserError(f"{shown}: must be a checkpoint, or a run directory with one")
    path, contents = newest
    changes: dict[str, str] = {}
    if "config" in contents:
        changes = differences(contents["config"], config)
        where = f"{shown}: {path.name}"
        refuse_differences(contents["config"], config, changes.keys() - NETWORK, where)
    record = {
        "file": path.name,
        "step": contents["step"],
        "weights_crc32": checkpoint.weights_crc32(contents),
    }
    model, shadow = copy.deepcopy(experiment.network), contents["ema"]["shadow"]
    if config.model.class_conditional and "label_emb.weight" not in shadow:
        # Of a network that was not told classes: one that takes no notice of them.
        shadow["label_emb.weight"] = torch.zeros(model.state_dict()["label_emb.weight"].shape)
    checkpoint.load_averages(model, path, contents)
    of_weights = {key: text for key, text in changes.items() if key.startswith(("model.", "data."))}
    return InitialWeights(model.state_dict(), of_weights, record)


def loop(run: Run) -> None:
    """Steps until n_iters: after each what is due is logged, saved, evaluated and drawn."""
    config, trainer, training, data = run.config, run.trainer, run.config.training, run.config.data
    batches = TrainBatches(
        run.images, config.seed, training.batch_size, data.random_flip, data.uniform_dequantization,
        distributed.shard(range(training.batch_size)),
    )  # fmt: skip
    pinned = trainer.device.type == "cuda"
    loading = train_loader(batches, trainer.step, training.n_iters, data.num_workers, pinned)
    window = LossWindow(config.model.K)
    with (
        MetricsWriter(run.workdir, trainer.step) as metrics,
        TrainingProgress(trainer.step, training.n_iters) as progress,
        closing(loading) as loader,
    ):
        metrics.event(trainer.step, **run.event, **run.provenance)
        metrics.text(trainer.step, "config", to_json(config))
        show_data(run, metrics)
        if trainer.step > 0:
            # A signal may have come between the save at this step and what else was due.
            saved = distributed.from_main(run.numbered_path().exists())
            if run.due(training.snapshot_freq) and not saved:
                run.snapshot()
            show(run, metrics, progress, only_missing=True)
        started = time.monotonic()
        for batch in loader:
            waited = time.monotonic() - started
            run.unreadable.note(batch.unreadable)
            told = (batch.labels,) if config.model.class_conditional else ()
            result = trainer.train_step(batch.images, *told)
            window.add(result, seconds=time.monotonic() - started)
            progress.step_done(trainer.step, result.losses.mean().item(), waited)
            note_nonfinite(run, metrics, batch, result)
            if run.due(training.log_freq):
                log(run, metrics, progress, window)
            if run.due(training.snapshot_freq):
                run.snapshot()
            elif run.due(training.snapshot_freq_for_preemption) and trainer.nonfinite_in_a_row == 0:
                run.save()  # unless the step was non-finite: the weights may be the reason
            if distributed.world_size() == 1 or run.due(training.log_freq):
                run.guard.check_all()
            show(run, metrics, progress)
            started = time.monotonic()


def note_nonfinite(run: Run, metrics: MetricsWriter, batch: Batch, result: StepResult) -> None:
    """Say that a step was skipped, as its gradient is not finite.

    Raises UserError after too many in a row, with the batch's facts in metrics.jsonl.
    """
    trainer, most = run.trainer, run.config.training.max_nonfinite_steps
    if result.finite or trainer.nonfinite_in_a_row == 0:  # float16's loss scale is still too large
        return
    count = trainer.nonfinite_in_a_row
    what = f"loss {result.losses.mean().item():g}, gradient {result.grad_norm:g}"
    if count < most:
        warn(f"step {trainer.step}: {what}: skipped ({count} in a row)")
        return
    names = distributed.gather([run.images.name(i) for i in batch.indices.tolist()])
    metrics.event(
        trainer.step,
        "stopped",
        precision=trainer.precision.name,
        images=[name for part in names for name in part],
        levels=result.levels.tolist(),
        losses=[str(loss) for loss in result.losses.tolist()],  # as text: JSON has no NaN
        weights_not_finite=[
            key for key, weight in trainer.model.named_parameters() if not weight.isfinite().all()
        ],
    )
    saved = "nothing was saved before them"
    if checkpoint.meta_path(run.workdir).exists():
        saved = "the last checkpoint is from before them"
    raise run.divergence(
        f"{what}, the last of {count} non-finite steps in a row "
        f"(config.training.max_nonfinite_steps = {most}); {saved}, "
        f"and the last row of {run.workdir / 'metrics.jsonl'} says more"
    )


def log(run: Run, metrics: MetricsWriter, progress: TrainingProgress, window: LossWindow) -> None:
    """A row of training metrics. A collective function."""
    trainer = run.trainer
    run.unreadable.share()
    row = window.summary()
    counts = {"nonfinite_steps": trainer.nonfinite_steps, "unreadable_images": len(run.unreadable)}
    metrics.write(trainer.step, **row, lr=trainer.optimizer.param_groups[0]["lr"], **counts)
    progress.note_speed(row["images_per_second"])
    progress.report(trainer.step, row.get("loss", math.nan))


def show(
    run: Run, metrics: MetricsWriter, progress: TrainingProgress, only_missing: bool = False
) -> None:
    """Evaluate and sample if that is due; with `only_missing` unless it was done before the run was
    interrupted.
    """
    step, training = run.trainer.step, run.config.training
    if run.due(training.eval_freq) and not (only_missing and step in metrics.evaluated_steps):
        metrics.write(step, **held_out_loss(run))
    directory = run.workdir / "samples" / f"iter_{step}"
    sampled = only_missing and distributed.from_main((directory / "final.png").exists())
    if run.due(training.sampling_freq) and not sampled:
        draw_samples(run, directory)
        metrics.image(step, "samples", directory / "final.png")
        say(f"step {step}: samples in {directory}")


def show_data(run: Run, metrics: MetricsWriter) -> None:
    """Write data.png, what the network will see, unless it is there; warn of images that hardly
    differ.
    """
    path = run.workdir / "data.png"
    if not distributed.is_main() or (run.trainer.step > 0 and path.exists()):
        return
    with optional("data.png"):
        shown = DataPicture(run.experiment, run.images)
        if line := shown.warning():
            warn(line)
        picture = shown.draw()
        with atomic_write(path) as temporary:
            picture.save(temporary)
        metrics.image(run.trainer.step, "data", path)
        say(f"what the network will see: {path}")


def held_out_loss(run: Run) -> dict[str, float]:
    """The loss of the averaged weights over held-out images, with its standard error.

    A collective function.
    """
    losses = [torch.empty(0)]
    with run.guard.until_interrupted(), run.trainer.ema.swapped_in(run.trainer.model):
        for batch in run.held_out:
            run.guard.check()
            run.unreadable.note(batch.unreadable)
            if len(batch.images):
                losses.append(held_out_losses(run.trainer, batch))
    run.unreadable.share()
    loss = distributed.gather_rows(torch.cat(losses))
    if len(loss) == 0:
        raise none_readable(sorted(run.unreadable), "held-out ")
    estimate = Estimate.of(loss)
    row = {"eval_loss": estimate.value, "eval_num_images": estimate.num_images}
    if math.isfinite(estimate.standard_error):
        row["eval_loss_standard_error"] = estimate.standard_error
    return row


def draw_samples(run: Run, directory: Path) -> None:
    """Pictures of samples from the averaged weights, drawn by process 0, in `directory`.

    A collective function.
    """
    config, trainer = run.config, run.trainer
    if config.model.sampling_noise != "isotropic":
        run.calibrate()
    with run.guard.until_interrupted(), trainer.ema.swapped_in(trainer.model):
        if distributed.is_main():
            model = trainer.model.eval()
            sampler = make_sampler(
                run.experiment, model, run.prior, trainer.precision, run.calibration,
                classes=run.classes,
            )  # fmt: skip
            indices = range(config.training.num_samples)
            sample_set(directory, sampler, indices, on_step=lambda k, u_k: run.guard.check())


@dataclass
class Run:
    """Everything that a training consists of, and its state on disk."""

    config: ConfigDict
    experiment: Experiment
    workdir: Path
    guard: InterruptionGuard
    images: ImageSource
    """To train on."""
    held_out: OrderedBatches
    unreadable: UnreadableImages
    data: dict[str, Any]
    """`identity` of the images to train on and of those held out, as plain data."""
    prior: Prior
    """With labels if the network is told them."""
    trainer: Trainer
    event: dict[str, Any]
    """How this start of the run began: the first row that it writes to metrics.jsonl."""
    provenance: dict[str, Any]
    calibration: dict[str, torch.Tensor] | None = None
    """Of the averaged weights at step `calibration_step`."""
    calibration_step: int = -1

    @property
    def classes(self) -> dict[str, int]:
        """What the network is told: training images of each class, by name; or none."""
        return class_counts(self.images) if self.config.model.class_conditional else {}

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
        images, labels = calibration_images(self.images, config.training.noise_images, config)
        with trainer.ema.swapped_in(trainer.model):
            self.calibration = calibrate(
                process,
                trainer.model.eval(),
                trainer.precision,
                images,
                config.seed,
                config.eval.batch_size,
                stop=lambda: self.guard.received is not None,
                labels=labels,
            )
        self.guard.check_all()
        self.calibration_step = trainer.step

    def numbered_path(self) -> Path:
        """Where the numbered checkpoint of this step is, or would be."""
        # Rounded up: a last step between two snapshots has a number of its own, and never 0, which
        # means "newest".
        number = math.ceil(self.trainer.step / self.config.training.snapshot_freq)
        return checkpoint.free_number(self.workdir, number, self.trainer.step)

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
                contents = checkpoint.for_sampling(contents)
            checkpoint.write(self.numbered_path(), contents)
            checkpoint.delete_all_but(self.workdir, training.keep_snapshots)

    def save(self) -> None:
        """Write the checkpoint to resume from.

        Raises UserError if that fails, or if the weights are not finite.
        """
        if distributed.is_main():
            checkpoint.write_meta(self.workdir, self._contents())

    def _contents(self) -> Contents:
        """All that is in a checkpoint, as plain data."""
        if not self.trainer.all_finite():
            what = "weights or averages are not finite, and not saved"
            raise self.divergence(f"{what}; earlier checkpoints are intact")
        levels = self.experiment.levels
        up_to_date = self.calibration_step == self.trainer.step
        contents = {"classes": self.classes} if self.classes else {}
        return contents | {
            **self.trainer.state_dict(),
            "config": to_json(self.config),
            "sigma_B": None if levels is None else torch.tensor(levels, dtype=torch.float64),
            "data": self.data,
            "prior": self.prior.state_dict(),
            "calibration": self.calibration if up_to_date else None,
            "provenance": self.provenance,
        }

    def divergence(self, what: str) -> UserError:
        """An error about weights that are out of range."""
        advice = f"The same command with a lower config.optim.lr = {self.config.optim.lr:g}"
        return UserError(f"step {self.trainer.step}: {what}. {advice} may help")


class Interrupted(Exception):
    """Raised between two pieces of work once a signal has come."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number  # the shells' convention: the run is not finished


class InterruptionGuard:
    """Within the context SIGTERM, SIGHUP and Ctrl-C are noted instead of obeyed, so that a run can
    save; a second Ctrl-C is obeyed at once.

    SIGHUP stays ignored where it is, as by nohup.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> InterruptionGuard:
        numbers = {signal.SIGTERM, signal.SIGINT}
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.add(signal.SIGHUP)
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def check(self) -> None:
        """Raise Interrupted if this process got a signal: for work without collectives, within
        `until_interrupted`.
        """
        if self.received is not None:
            raise Interrupted(self.received)

    def checked(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the same items, with a `check` before each."""
        for item in items:
            self.check()
            yield item

    def check_all(self) -> None:
        """Raise Interrupted in all processes if any of them got a signal. A collective function."""
        received = max(distributed.gather(self.received or 0))
        if received:
            raise Interrupted(received)

    @contextmanager
    def until_interrupted(self) -> Iterator[None]:
        """For work without collectives: a signal ends it in this process, and after it all
        processes stop.
        """
        with suppress(Interrupted):
            yield
        self.check_all()
