"""Evaluate a trained model: a bound on its likelihood, or the quality of its samples.

python evaluate.py --config C --workdir W --checkpoint 0 --mode=elbo [--exact] [--delta=0.013]
python evaluate.py --config C --workdir W --checkpoint 0 --mode=fid --dataset_name_cleanfid=cifar10 --num_gen=50000
python evaluate.py --config C --workdir W --mode=elbo --sweep=delta=0.010:0.016:0.001
python evaluate.py --save_stats --custom_name=N --dataset_path=D

Scores are appended to runs/<dataset_name>/evaluation_results/<experiment_name>/, with everything that they depend on.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from scripts.config import define_config_flag, run, validate
from scripts.errors import UserError
from scripts.evaluation.metrics import MODES
from scripts.io import user_path
from scripts.release import define_release_flags

if TYPE_CHECKING:
    from scripts.evaluation.sweep import Axes, Evaluate, Point

CONFIG = define_config_flag(required=False)  # --save_stats needs none
WORKDIR = flags.DEFINE_string("workdir", "", "Run directory that train.py made.")
CHECKPOINT = flags.DEFINE_integer("checkpoint", 0, "n for checkpoints/checkpoint_n.pth, 0 for the newest.", lower_bound=0)
MODE = flags.DEFINE_enum("mode", "fid", ["elbo", *MODES], "What to compute; all: all metrics of samples.")
DELTA = flags.DEFINE_string("delta", None, "Sampling noise: a standard deviation, or spectral; by default the configuration's.")
SEED = flags.DEFINE_integer("seed", None, "Everything random is a function of it; by default config.seed.", 0, 2**64 - 1)
PRECISION = flags.DEFINE_enum("precision", "float32", ["float32", "bfloat16", "float16"], "What the network computes in.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Images at a time; by default config.eval.batch_size.", lower_bound=1)
SPLIT = flags.DEFINE_string("dataset_split", None, "Split to compare with; by default test for elbo, train otherwise.")
SWEEP = flags.DEFINE_multi_string(
    "sweep", [], "delta, checkpoint or seed =first:last:step or =a,b,...; several times for all combinations."
)

DATASET_NAME = flags.DEFINE_string("dataset_name", None, "Folder of results below runs/; by default config.data.dataset.")
EXPERIMENT_NAME = flags.DEFINE_string("experiment_name", None, "Folder of results below that; by default --workdir's name.")
PARAM_NAME = flags.DEFINE_string(
    "param_name", None, "Settings, with commas, or a label at the start of the log's lines; by default those swept, or delta."
)

NUM_IMAGES = flags.DEFINE_integer(
    "num_images",
    None,
    "elbo: images, spread evenly over the split, 0 for all; by default config.eval.num_images.",
    lower_bound=0,
)
NUM_LEVELS = flags.DEFINE_integer("num_levels_per_image", 10, "elbo: levels drawn for each image.", lower_bound=1)
EXACT = flags.DEFINE_bool("exact", False, "elbo: all levels for every image.")
DEQUANTIZE = flags.DEFINE_bool("dequantize", True, "elbo: add uniform noise to 8-bit values, which bits/dim need.")

NUM_GEN = flags.DEFINE_integer("num_gen", 50000, "Samples to draw.", lower_bound=1)
REFERENCE = flags.DEFINE_string(
    "dataset_name_cleanfid", "", "Reference: clean-fid's name for it, an .npz or a folder; by default the config's data set."
)
CLEANFID_MODE = flags.DEFINE_enum(
    "cleanfid_mode", "clean", ["clean", "legacy_tensorflow", "legacy_pytorch"], "As clean-fid's modes."
)
EXTRACTOR = flags.DEFINE_enum("feature_extractor", "inception", ["inception", "classifier"], "What makes the features.")
INCEPTION_PATH = flags.DEFINE_string("inception_path", "", "inception-2015-12-05.pt, or the folder that it is in.")
NEIGHBOURS = flags.DEFINE_integer(
    "k", 5, "prdc: nearest neighbours; Kynkaanniemi et al. have 3 for precision and recall.", lower_bound=1
)

SAVE_STATS = flags.DEFINE_bool("save_stats", False, "Make clean-fid statistics of a folder of images, and nothing else.")
CUSTOM_NAME = flags.DEFINE_string("custom_name", "", "With --save_stats: their name.")
DATASET_PATH = flags.DEFINE_string("dataset_path", "", "With --save_stats: the folder.")
IMAGE_SIZE = flags.DEFINE_integer("image_size", None, "With --save_stats: scale images to this size first.", lower_bound=1)
define_release_flags()

FLAGS_OF_BOUND = (SPLIT, NUM_IMAGES, NUM_LEVELS, EXACT, DEQUANTIZE)
FLAGS_OF_SAMPLES = (SPLIT, NUM_GEN, REFERENCE, CLEANFID_MODE, EXTRACTOR, NEIGHBOURS)


def main() -> int:
    """Check how the flags go together, evaluate, write the scores down."""
    check_combinations()
    from scripts import distributed  # imports PyTorch, which --help and mistyped flags need not wait for
    from scripts.evaluation.sweep import parse_sweeps

    axes = parse_sweeps(SWEEP.value)
    for name in axes:
        if flags.FLAGS[name].present:
            raise UserError(f"--{name} and --sweep={name}=...: choose one of them")

    with distributed.processes():
        if SAVE_STATS.value:
            return save_statistics() if distributed.is_main() else 0
        return evaluate(axes)


def evaluate(axes: "Axes") -> int:
    """Evaluate at one point, or at all that `axes` span."""
    from scripts import distributed
    from scripts.evaluation import results, sweep
    from scripts.sampling.sampler import parse_delta

    config, workdir = CONFIG.value, user_path(WORKDIR.value, "--workdir")
    validate(config)
    base = sweep.Point(
        delta=parse_delta(DELTA.value, config),
        checkpoint=CHECKPOINT.value,
        seed=config.seed if SEED.value is None else SEED.value,
    )
    dataset = DATASET_NAME.value or config.data.dataset.lower()
    directory = results.results_directory(results.RUNS, dataset, EXPERIMENT_NAME.value or workdir.resolve().name)
    evaluation = bound_evaluation(workdir, directory) if MODE.value == "elbo" else sample_evaluation(workdir)
    param_name = PARAM_NAME.value or ",".join(axes) or "delta"
    runner = sweep.Runner(evaluation, directory, lambda point: request(workdir, point), param_name, workdir)
    if not axes:
        runner.run_point(base)
        print(f"scores appended to {directory}")
        return 0
    scores = runner.run(sweep.sweep_points(base, axes))
    if distributed.is_main():
        print(sweep.report(scores, axes, directory))
    return 0


def bound_evaluation(workdir: Path, directory: Path) -> "Evaluate":
    """The bound on the likelihood, as the flags say; its tables by level go to `directory`."""
    from scripts.evaluation.bound import BoundEvaluation

    config = CONFIG.value
    evaluation = BoundEvaluation(
        config,
        workdir,
        split=SPLIT.value or "test",
        num_images=config.eval.num_images if NUM_IMAGES.value is None else NUM_IMAGES.value,
        num_levels_per_image=NUM_LEVELS.value,
        exact=EXACT.value,
        batch_size=BATCH_SIZE.value or config.eval.batch_size,
        dequantize=DEQUANTIZE.value,
        precision=PRECISION.value,
    )
    return lambda point: evaluation(checkpoint=point.checkpoint, delta=point.delta, seed=point.seed, directory=directory)


def sample_evaluation(workdir: Path) -> "Evaluate":
    """The metrics of samples that --mode names, as the flags say."""
    from scripts.evaluation.fid import SampleEvaluation

    evaluation = SampleEvaluation(
        CONFIG.value,
        workdir,
        metrics=MODES[MODE.value],
        batch_size=BATCH_SIZE.value or CONFIG.value.eval.batch_size,
        num_gen=NUM_GEN.value,
        reference=REFERENCE.value,
        dataset_split=SPLIT.value or "train",
        cleanfid_mode=CLEANFID_MODE.value,
        feature_extractor=EXTRACTOR.value,
        inception_path=INCEPTION_PATH.value,
        k=NEIGHBOURS.value,
        precision=PRECISION.value,
    )
    return lambda point: evaluation(checkpoint=point.checkpoint, delta=point.delta, seed=point.seed)


def request(workdir: Path, point: "Point") -> dict[str, Any]:
    """What the scores of a point depend on, as plain data. Raises UserError for a checkpoint that is not there."""
    from scripts.provenance import config_hash
    from scripts.sampling.sampler import load_sampler

    config = CONFIG.value
    sampler, trained = load_sampler(
        config, workdir, point.checkpoint, delta=point.delta, seed=point.seed, precision=PRECISION.value, scoring=True
    )
    relevant = FLAGS_OF_BOUND if MODE.value == "elbo" else FLAGS_OF_SAMPLES
    chosen = {flag.name: flag.value for flag in relevant}
    return {"mode": MODE.value, "config_hash": config_hash(config), **sampler.settings(config, trained), **chosen}


def save_statistics() -> int:
    """Make clean-fid statistics of a folder of images, as the flags say."""
    from scripts.device import resolve_device
    from scripts.evaluation import fid

    path = fid.save_statistics(
        CUSTOM_NAME.value,
        DATASET_PATH.value,
        image_size=IMAGE_SIZE.value,
        cleanfid_mode=CLEANFID_MODE.value,
        batch_size=BATCH_SIZE.value or 64,
        inception_path=INCEPTION_PATH.value,
        device=resolve_device("auto"),
    )
    print(f"statistics in {path}: --dataset_name_cleanfid={CUSTOM_NAME.value} --dataset_split=custom")
    return 0


def check_combinations() -> None:
    """Raise UserError for flags that exclude or need each other."""
    for flag in (CUSTOM_NAME, DATASET_PATH) if SAVE_STATS.value else (CONFIG, WORKDIR):
        if not flag.value:
            raise UserError(f"--{flag.name} is needed {'with' if SAVE_STATS.value else 'without'} --save_stats")
    for name in ("custom_name", "dataset_path", "image_size"):
        if flags.FLAGS[name].present and not SAVE_STATS.value:
            raise UserError(f"--{name} goes with --save_stats")


if __name__ == "__main__":
    run(main)
