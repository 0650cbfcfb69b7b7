"""The training loop: images in; metrics, samples and checkpoints out; resumable at any step."""

import math
import time
from contextlib import closing
from pathlib import Path

import torch
from ml_collections import ConfigDict

from scripts.config.checks import doubts, validate
from scripts.config.load import to_json
from scripts.config.resolve import resolve
from scripts.data.datasets import load_images, require_outside_data
from scripts.data.loader import Batch, ReadingFailed, TrainBatches, none_readable, train_loader
from scripts.errors import UserError, line_for
from scripts.estimate import Estimate
from scripts.runtime import distributed
from scripts.runtime.device import resolve_device
from scripts.runtime.progress import TrainingProgress, say, warn
from scripts.sampling.output import sample_set
from scripts.sampling.sampler import make_sampler
from scripts.storage import checkpoint
from scripts.storage.files import exclusive, make_directory
from scripts.training.log import LossWindow, MetricsWriter
from scripts.training.plan import describe
from scripts.training.run import (
    Interrupted,
    InterruptionGuard,
    Run,
    prepare,
    read_initial_weights,
)
from scripts.training.step import StepResult, held_out_losses


def train(config: ConfigDict, workdir: Path) -> int:
    """Train as `config` says, in `workdir`, from its newest checkpoint if it has one. Returns the
    exit code.

    Raises UserError, before anything is written, for a configuration or data that cannot be trained
    on.
    """
    validate(config)
    size, processes = config.training.batch_size, distributed.world_size()
    microbatches = processes * config.training.accumulation_steps
    if size % microbatches:
        split = f"{processes} processes and config.training.accumulation_steps"
        needed = f"must be a multiple of {microbatches}, for {split}"
        raise UserError(f"config.training.batch_size = {size}: {needed}")
    device = resolve_device(config.device)
    experiment = initial = None
    if not checkpoint.existing(workdir):  # a run that is continued has levels of its own
        experiment = resolve(config)
        if config.training.init_from:
            initial = read_initial_weights(experiment)
    require_outside_data(workdir, "--workdir", config.data)
    images = load_images(config.data, "train"), load_images(config.data, "held_out")
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
        trainer, first_step = run.trainer, run.trainer.step
        for line in doubts(config):
            warn(line)
        print(describe(trainer.experiment, trainer.precision, *images, first_step), flush=True)
        try:
            loop(run)
        except Interrupted as interruption:
            run.save()
            saved = f"saved at step {trainer.step}"
            print(f"{interruption}: {saved}; the same command goes on from there")
            return interruption.exit_code
        except (ReadingFailed, MemoryError, RuntimeError, OSError) as error:
            reason = line_for(error)
            if reason is None or not distributed.is_main():
                raise
            saved = "Not saved, as it happened within an update"
            if not trainer.updating:
                run.save()
                saved = f"Saved at step {trainer.step}"
            advice = "the same command goes on from the last save"
            raise UserError(f"{reason}. {saved}; {advice}") from None
    if trainer.step > first_step:
        print(f"finished at step {trainer.step}: {workdir}")
    else:
        more = "a larger --config.training.n_iters would go on"
        print(f"already finished at step {first_step}; {more}: {workdir}")
    return 0


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
        if trainer.step > 0:
            # A signal may have come between the save at this step and what else was due.
            saved = distributed.from_main(run.numbered_path().exists())
            if run.due(training.snapshot_freq) and not saved:
                run.snapshot()
            show(run, metrics, progress, only_missing=True)
        started = time.monotonic()
        for batch in loader:
            run.unreadable.note(batch.unreadable)
            result = trainer.train_step(batch.images)
            window.add(result, seconds=time.monotonic() - started)
            progress.step_done(result.losses.mean().item())
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
                losses.append(held_out_losses(run.trainer, batch.images, batch.indices))
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
                trainer.experiment, model, run.prior, trainer.precision, run.calibration
            )
            indices = range(config.training.num_samples)
            sample_set(directory, sampler, indices, on_step=lambda k, u_k: run.guard.check())
