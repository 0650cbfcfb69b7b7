"""Evaluate a trained model: a bound on its likelihood, or the quality of its samples.

python evaluate.py --workdir W [--checkpoint 0] --mode=elbo [--exact] [--delta=0.013]
python evaluate.py --workdir W [--checkpoint 0] --mode=fid --dataset_name_cleanfid=cifar10 --num_gen=50000
python evaluate.py --workdir W --mode=elbo --delta=0.010:0.016:0.001 --checkpoint=1,2
python evaluate.py --save_stats --custom_name=N --dataset_path=D

--delta, --steps, --checkpoint and --seed take lists (a,b,... or first:last:step): all combinations
are evaluated, with a table and plots. A list in --steps that ends in 0 is one chain.

Scores are appended to runs/<dataset_name>/evaluation_results/<experiment_name>/, with everything
that they depend on.
"""

from functools import partial
from pathlib import Path

from absl.flags import FLAGS
from ml_collections import ConfigDict

from scripts.config.checks import validate
from scripts.config.flags import run
from scripts.data.datasets import require_outside_data
from scripts.errors import UserError
from scripts.evaluation import references, results, sweep
from scripts.evaluation.bound import BoundEvaluation
from scripts.evaluation.classifier import classifier_features
from scripts.evaluation.dinov2 import DINOv2Features
from scripts.evaluation.features import Extractor
from scripts.evaluation.inception import InceptionFeatures
from scripts.evaluation.metrics import MODES
from scripts.evaluation.pixels import SampleFiles
from scripts.evaluation.scores import SampleEvaluation
from scripts.runtime import distributed
from scripts.runtime.device import resolve_device
from scripts.storage.checkpoint import saved_config
from scripts.storage.files import make_directory


def main() -> int:
    """Evaluate, and write the scores down."""
    with distributed.processes():
        if FLAGS.save_stats:
            return save_statistics() if distributed.is_main() else 0
        return evaluate()


def evaluate() -> int:
    """Evaluate at one point, or at all points of a sweep."""
    if FLAGS.sweep:
        new_form = " ".join(f"--{text}" for text in FLAGS.sweep)
        raise UserError(f"--sweep is no longer a flag: write {new_form}")
    workdir = FLAGS.workdir
    checkpoints = sweep.parse_list("checkpoint", FLAGS.checkpoint)
    config = FLAGS.config or saved_config(workdir, checkpoints[0])
    validate(config)
    seeds = [config.seed] if FLAGS.seed is None else sweep.parse_list("seed", FLAGS.seed)
    axes = {
        "delta": [None] if FLAGS.delta is None else sweep.parse_list("delta", FLAGS.delta),
        "steps": [None] if FLAGS.steps is None else sweep.parse_list("steps", FLAGS.steps),
        "checkpoint": checkpoints,
        "seed": seeds,
    }  # the first changes fastest: another delta needs no new network calls for the bound
    swept = [name for name, values in axes.items() if len(values) > 1]
    if FLAGS.samples is not None and swept:
        raise UserError(f"--seed={FLAGS.seed}: must be one with --samples")
    points = sweep.sweep_points(
        axes,
        eta=FLAGS.eta,
        sampler=FLAGS.sampler,
        init=FLAGS.init,
        per_init=FLAGS.per_init,
        from_level=FLAGS.from_level,
    )
    dataset = FLAGS.dataset_name or config.data.dataset.lower()
    given = None if FLAGS.samples is None else SampleFiles.read(FLAGS.samples, config, seeds[0])
    experiment = FLAGS.experiment_name or (
        workdir.resolve().name if given is None else Path(given.name).resolve().stem
    )
    named_after = None if FLAGS.experiment_name or given is not None else workdir
    directory = FLAGS.out or results.results_directory(
        results.RUNS, dataset, experiment, named_after
    )
    cache = workdir / "evaluation" if FLAGS.out is None and workdir else directory / "features"
    if distributed.is_main():  # before anything is computed
        for place in (directory,) if FLAGS.mode == "elbo" else (directory, cache):
            require_outside_data(place, "--out", config.data, samples=FLAGS.samples)
            make_directory(place, "--out")
        if FLAGS.out is None and named_after is not None:
            (directory / results.OWNER).write_text(str(named_after.resolve()))
    param_name = FLAGS.param_name or ",".join(swept) or ("delta" if given is None else "samples")
    of_run = workdir if given is None else None
    runner = sweep.Runner(
        evaluation(config, directory, cache, given), directory, param_name, of_run
    )
    if not swept:
        runner.run_point(points[0])
        print(f"scores appended to {directory}")
        return 0
    scores = runner.run(points)
    if distributed.is_main():
        print(sweep.report(scores, swept, directory))
    return 0


def evaluation(
    config: ConfigDict, directory: Path, cache: Path, given: SampleFiles | None
) -> sweep.Evaluation:
    """Return what --mode names; tables of the bound by level go to `directory`, features to `cache`."""
    batch_size = FLAGS.batch_size or config.eval.batch_size
    if FLAGS.mode == "elbo":
        return BoundEvaluation(
            config,
            FLAGS.workdir,
            directory,
            split=FLAGS.dataset_split or "test",
            num_images=config.eval.num_images if FLAGS.num_images is None else FLAGS.num_images,
            batch_size=batch_size,
            num_levels_per_image=FLAGS.num_levels_per_image,
            exact=FLAGS.exact,
            dequantize=FLAGS.dequantize,
            precision=FLAGS.precision,
        )
    return SampleEvaluation(
        config,
        FLAGS.workdir,
        cache=cache,
        metrics=MODES[FLAGS.mode],
        batch_size=batch_size,
        reference=FLAGS.dataset_name_cleanfid,
        dataset_split=FLAGS.dataset_split or "train",
        num_gen=FLAGS.num_gen if given is None or FLAGS["num_gen"].present else len(given.images),
        given=given,
        make_extractor=partial(make_extractor, config, cache),
        k=FLAGS.k,
        precision=FLAGS.precision,
    )


def make_extractor(config: ConfigDict, cache: Path) -> Extractor:
    """Return what --feature_extractor names; a classifier that is trained for it goes to `cache`."""
    device = distributed.device(config.device)
    if FLAGS.feature_extractor == "classifier":
        return classifier_features(cache, config.data, device)
    if FLAGS.feature_extractor == "dinov2":
        return DINOv2Features(FLAGS.dinov2_path, device)
    return InceptionFeatures(FLAGS.cleanfid_mode, FLAGS.inception_path, device)


def save_statistics() -> int:
    """Make clean-fid statistics of a folder of images, as the flags say."""
    mode, name = FLAGS.cleanfid_mode, FLAGS.custom_name
    extractor = InceptionFeatures(mode, FLAGS.inception_path, resolve_device("auto"))
    path = references.save_statistics(
        name, FLAGS.dataset_path, extractor, mode, FLAGS.batch_size or 64
    )
    print(f"statistics in {path}: --dataset_name_cleanfid={name} --dataset_split=custom")
    return 0


if __name__ == "__main__":
    run("evaluate", main)
