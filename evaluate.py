"""Evaluate a trained model: a bound on its likelihood, or the quality of its samples.

python evaluate.py --workdir W [--checkpoint 0] --mode=elbo [--exact] [--delta=0.013]
python evaluate.py --workdir W [--checkpoint 0] --mode=fid --dataset_name_cleanfid=cifar10 --num_gen=50000
python evaluate.py --workdir W --mode=elbo --sweep=delta=0.010:0.016:0.001
python evaluate.py --save_stats --custom_name=N --dataset_path=D

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
from scripts.evaluation.pixels import SampleFiles
from scripts.evaluation.inception import InceptionFeatures
from scripts.evaluation.metrics import MODES
from scripts.evaluation.scores import SampleEvaluation
from scripts.runtime import distributed
from scripts.runtime.device import resolve_device
from scripts.sampling.choice import parse_delta
from scripts.storage.checkpoint import saved_config
from scripts.storage.files import make_directory


def main() -> int:
    """Evaluate, and write the scores down."""
    with distributed.processes():
        if FLAGS.save_stats:
            return save_statistics() if distributed.is_main() else 0
        return evaluate()


def evaluate() -> int:
    """Evaluate at one point, or at all that --sweep names."""
    workdir = FLAGS.workdir
    config = FLAGS.config or saved_config(workdir, FLAGS.checkpoint)
    validate(config)
    axes = sweep.parse_sweeps(FLAGS.sweep)
    for name in axes:
        if FLAGS[name].present:
            raise UserError(f"--{name} and --sweep={name}=...: choose one of them")
    seed = config.seed if FLAGS.seed is None else FLAGS.seed
    delta = None if FLAGS.delta is None else parse_delta(FLAGS.delta)
    base = sweep.Point(
        delta,
        FLAGS.steps,
        FLAGS.eta,
        FLAGS.sampler,
        FLAGS.init,
        FLAGS.per_init,
        FLAGS.from_level,
        checkpoint=FLAGS.checkpoint,
        seed=seed,
    )
    dataset = FLAGS.dataset_name or config.data.dataset.lower()
    given = None if FLAGS.samples is None else SampleFiles.read(FLAGS.samples, config, seed)
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
    param_name = FLAGS.param_name or ",".join(axes) or ("delta" if given is None else "samples")
    of_run = workdir if given is None else None
    runner = sweep.Runner(
        evaluation(config, directory, cache, given), directory, param_name, of_run
    )
    if not axes:
        runner.run_point(base)
        print(f"scores appended to {directory}")
        return 0
    scores = runner.run(sweep.sweep_points(base, axes))
    if distributed.is_main():
        print(sweep.report(scores, axes, directory))
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
