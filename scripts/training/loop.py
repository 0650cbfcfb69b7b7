"""The training loop: images in; metrics, samples and checkpoints out; resumable at any step."""

import math
import time
from contextlib import closing
from pathlib import Path

import torch
from ml_collections import ConfigDict

from scripts.config.checks import doubts, validate
from scripts.config.load import to_json
from scripts.config.schedule import settled
from scripts.data.datasets import load_images, require_outside_data
from scripts.data.loader import ReadingFailed, TrainBatches, none_readable, train_loader
from scripts.errors import UserError, expected
from scripts.estimate import Estimate
from scripts.runtime import distributed
from scripts.runtime.progress import TrainingProgress, warn
from scripts.sampling.output import sample_set
from scripts.sampling.sampler import make_sampler
from scripts.storage import checkpoint
from scripts.storage.files import exclusive, make_directory
from scripts.training.initial import InitialWeights
from scripts.training.interruption import Interrupted, InterruptionGuard
from scripts.training.log import LossWindow, MetricsWriter
from scripts.training.nonfinite import note_nonfinite
from scripts.training.plan import describe
from scripts.training.run import Run
from scripts.training.step import held_out_losses


def train(config: ConfigDict, workdir: Path) -> int:
    """Train as `config` says, in `workdir`, from its newest checkpoint if it has one. Returns the
    exit code.

    Raises UserError, before anything is written, for a configuration or data that cannot be trained
    on.
    """
    validate(config)
    for line in doubts(config):
        warn(line)
    size, microbatches = (
        config.training.batch_size,
        distributed.world_size() * config.training.accumulation_steps,
    )
    if size % microbatches:
        split = f"{distributed.world_size()} processes and config.training.accumulation_steps"
        raise UserError(
            f"config.training.batch_size = {size}: must be a multiple of {microbatches}, for {split}"
        )
    if not checkpoint.existing(workdir):
        settled(config)  # reads levels from a file, which a run that goes on can do without
    device = distributed.device(config.device)
    start_anew = config.training.init_from and not checkpoint.existing(workdir)
    initial = InitialWeights.read(config) if start_anew else None
    require_outside_data(workdir, "--workdir", config.data)
    images = load_images(config.data, "train"), load_images(config.data, "held_out")
    distributed.barrier()  # nothing is written before all processes have found the data
    make_directory(workdir, "--workdir")
    busy = f"--workdir={workdir}: another training is running there; choose another, or wait"
    with exclusive(workdir, busy), InterruptionGuard() as guard:
        try:
            run = Run(config, workdir, device, guard, *images, initial)
            del initial  # as large as the network
        except Interrupted as interruption:
            print(f"{interruption}: stopped before there was anything to save")
            return interruption.exit_code
        trainer, first_step = run.trainer, run.trainer.step
        print(describe(trainer.config, trainer.precision, *images, first_step), flush=True)
        try:
            loop(run)
        except Interrupted as interruption:
            run.save()
            print(
                f"{interruption}: saved at step {trainer.step}; the same command goes on from there"
            )
            return interruption.exit_code
        except (ReadingFailed, MemoryError, RuntimeError, OSError) as error:
            reason = expected(error)
            if reason is None or not distributed.is_main():
                raise
            if not trainer.moving:
                run.save()
            saved = (
                "Not saved, as it happened within an update"
                if trainer.moving
                else f"Saved at step {trainer.step}"
            )
            raise UserError(
                f"{reason}. {saved}; the same command goes on from the last save"
            ) from None
    if trainer.step > first_step:
        print(f"finished at step {trainer.step}: {workdir}")
    else:
        print(
            f"already finished at step {first_step}; a larger --config.training.n_iters would go on: {workdir}"
        )
    return 0


def loop(run: Run) -> None:
    """Steps until n_iters: after each what is due is logged, saved, evaluated and drawn."""
    config, trainer, training, data = run.config, run.trainer, run.config.training, run.config.data
    batches = TrainBatches(
        run.images, config.seed, training.batch_size, data.random_flip, data.uniform_dequantization,
        distributed.shard(range(training.batch_size)),
    )  # fmt: skip
    window = LossWindow(config.model.K)
    with (
        MetricsWriter(run.workdir, trainer.step) as metrics,
        TrainingProgress(trainer.step, training.n_iters) as progress,
        closing(
            train_loader(
                batches,
                trainer.step,
                training.n_iters,
                data.num_workers,
                trainer.device.type == "cuda",
            )
        ) as loader,
    ):
        metrics.event(trainer.step, **run.start, **run.provenance)
        metrics.text(trainer.step, "config", to_json(config))
        if (
            trainer.step > 0
        ):  # a signal may have come between the save at this step and what else was due
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
        progress.say(f"step {step}: samples in {directory}")


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
                config, model, trainer.process, run.prior, trainer.precision, run.calibration
            )
            sample_set(
                directory,
                sampler,
                range(config.training.num_samples),
                on_step=lambda k, u_k: run.guard.check(),
            )
