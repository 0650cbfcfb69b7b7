"""Steps whose gradient is not finite: counted, explained, and in the end a reason to stop."""

from scripts.data.loader import Batch
from scripts.errors import UserError
from scripts.runtime import distributed
from scripts.runtime.progress import warn
from scripts.storage.checkpoint import meta_path
from scripts.training.log import MetricsWriter
from scripts.training.run import Run, diverged
from scripts.training.step import StepResult


def note_nonfinite(run: Run, metrics: MetricsWriter, batch: Batch, result: StepResult) -> None:
    """Say that a step was skipped.

    Raises UserError after too many in a row, with the batch's facts in metrics.jsonl.
    """
    trainer, most = run.trainer, run.config.training.max_nonfinite_steps
    if result.finite or trainer.nonfinite_in_a_row == 0:  # float16 has not found its loss scale yet
        return
    count, what = (
        trainer.nonfinite_in_a_row,
        f"loss {result.losses.mean().item():g}, gradient {result.grad_norm:g}",
    )
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
    saved = (
        "the last checkpoint is from before them"
        if meta_path(run.workdir).exists()
        else "nothing was saved before them"
    )
    raise UserError(
        diverged(
            run,
            f"{what}, the last of {count} non-finite steps in a row (config.training.max_nonfinite_steps = {most}); {saved}, "
            f"and the last row of {run.workdir / 'metrics.jsonl'} says more",
        )
    )
