"""Evaluate a trained model: a bound on its likelihood, or the quality of its samples.

python evaluate.py --config C --workdir W --checkpoint 0 --mode=elbo [--exact] [--delta=0.013]
python evaluate.py --config C --workdir W --checkpoint 0 --mode=fid --dataset_name_cleanfid=cifar10 --num_gen=50000
python evaluate.py --config C --workdir W --mode=elbo --sweep=delta=0.010:0.016:0.001
python evaluate.py --save_stats --custom_name=N --dataset_path=D

Scores are appended to runs/<dataset_name>/evaluation_results/<experiment_name>/, with everything that they depend on.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from scripts.config import define_config_flag, finite, run, sampling_delta, validate
from scripts.errors import UserError
from scripts.io import user_path
from scripts.release import define_release_flags

if TYPE_CHECKING:
    from scripts.evaluation.sweep import Axes, Evaluate, Point

SAMPLE_METRICS = {"fid": ("fid",), "kid": ("kid",), "prdc": ("prdc",), "all": ("fid", "kid", "prdc")}

CONFIG = define_config_flag(required=False)  # --save_stats needs none
WORKDIR = flags.DEFINE_string("workdir", "", "Run directory that train.py made.")
CHECKPOINT = flags.DEFINE_integer("checkpoint", 0, "n for checkpoints/checkpoint_n.pth, 0 for the newest.", lower_bound=0)
MODE = flags.DEFINE_enum("mode", "fid", ["elbo", *SAMPLE_METRICS], "What to compute; all: FID, KID and PRDC.")
DELTA = flags.DEFINE_float("delta", None, "Sampling noise; by default config.model.delta_over_sigma * sigma.", lower_bound=0)
SEED = flags.DEFINE_integer("seed", None, "Everything random is a function of it; by default config.seed.", 0, 2**64 - 1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Images at a time; by default config.eval.batch_size.", lower_bound=1)
SPLIT = flags.DEFINE_string("dataset_split", None, "Split to compare with; by default test for elbo, train otherwise.")
SWEEP = flags.DEFINE_multi_string(
    "sweep", [], "delta, checkpoint or seed =first:last:step or =a,b,...; several times for all combinations."
)

DATASET_NAME = flags.DEFINE_string("dataset_name", None, "Folder of results below runs/; by default config.data.dataset.")
EXPERIMENT_NAME = flags.DEFINE_string("experiment_name", None, "Folder of results below that; by default --workdir's name.")
PARAM_NAME = flags.DEFINE_string(
    "param_name", None, "Settings, with commas, or a label that head the log's lines; by default those swept, or delta."
)

NUM_IMAGES = flags.DEFINE_integer(
    "num_images",
    None,
    "elbo: images, spread evenly over the split, 0 for all; by default config.eval.num_images.",
    lower_bound=0,
)
NUM_LEVELS = flags.DEFINE_integer("num_levels_per_image", 10, "elbo: levels drawn for each image.", lower_bound=1)
EXACT = flags.DEFINE_bool("exact", False, "elbo: all levels for every image.")

NUM_GEN = flags.DEFINE_integer("num_gen", 50000, "Samples to draw.", lower_bound=1)
REFERENCE = flags.DEFINE_string(
    "dataset_name_cleanfid",
    "",
    "Reference: clean-fid's name for it, an .npz or a folder; by default the config's data set.",
)
CLEANFID_MODE = flags.DEFINE_enum(
    "cleanfid_mode", "clean", ["clean", "legacy_tensorflow", "legacy_pytorch"], "As clean-fid's modes."
)
EXTRACTOR = flags.DEFINE_enum("feature_extractor", "inception", ["inception", "classifier"], "What makes the features.")
INCEPTION_PATH = flags.DEFINE_string("inception_path", "", "inception-2015-12-05.pt, or the folder that it is in.")

SAVE_STATS = flags.DEFINE_bool("save_stats", False, "Make clean-fid statistics of a folder of images, and nothing else.")
CUSTOM_NAME = flags.DEFINE_string("custom_name", "", "With --save_stats: their name.")
DATASET_PATH = flags.DEFINE_string("dataset_path", "", "With --save_stats: the folder.")
IMAGE_SIZE = flags.DEFINE_integer("image_size", None, "With --save_stats: scale images to this size first.", lower_bound=1)
define_release_flags()


def main() -> int:
    """Check how the flags go together, evaluate, write the scores down."""
    from scripts import distributed  # imports PyTorch, which --help and mistyped flags need not wait for

    if SAVE_STATS.value:
        with distributed.processes():
            return save_statistics() if distributed.is_main() else 0
    from scripts.evaluation import sweep

    axes = sweep.parse_sweeps(SWEEP.value)
    check_combinations(list(axes))
    with distributed.processes():
        return evaluate(axes)


def evaluate(axes: "Axes") -> int:
    """Evaluate at one point, or at all that `axes` span."""
    from scripts import distributed
    from scripts.evaluation import sweep
    from scripts.evaluation.results import results_directory

    config = CONFIG.value
    validate(config)
    base = sweep.Point(
        delta=sampling_delta(config) if DELTA.value is None else DELTA.value,
        checkpoint=CHECKPOINT.value,
        seed=config.seed if SEED.value is None else SEED.value,
    )
    experiment = EXPERIMENT_NAME.value or user_path(WORKDIR.value, "--workdir").resolve().name
    directory = results_directory(Path("runs"), DATASET_NAME.value or config.data.dataset.lower(), experiment)
    param_name = PARAM_NAME.value or ",".join(axes) or "delta"
    evaluation = bound_evaluation(directory) if MODE.value == "elbo" else sample_evaluation()
    if not axes:
        sweep.run_point(evaluation, base, directory, param_name, Path(WORKDIR.value))
        print(f"scores appended to {directory}")
        return 0
    points = sweep.sweep_points(base, axes)
    scores = sweep.run_sweep(evaluation, points, directory, request(points), param_name, Path(WORKDIR.value))
    if distributed.is_main():
        print(sweep.report(scores, axes, directory))
    return 0


def bound_evaluation(directory: Path) -> "Evaluate":
    """The bound on the likelihood, as the flags say; its tables by level go to `directory`."""
    from scripts.evaluation.bound import LikelihoodEvaluation

    config = CONFIG.value
    evaluation = LikelihoodEvaluation(
        config,
        user_path(WORKDIR.value, "--workdir"),
        split=SPLIT.value or "test",
        num_images=config.eval.num_images if NUM_IMAGES.value is None else NUM_IMAGES.value,
        num_levels_per_image=NUM_LEVELS.value,
        exact=EXACT.value,
        batch_size=BATCH_SIZE.value or config.eval.batch_size,
    )
    return lambda point: evaluation(checkpoint=point.checkpoint, delta=point.delta, seed=point.seed, directory=directory)


def sample_evaluation() -> "Evaluate":
    """The metrics of samples that --mode names, as the flags say."""
    from scripts.evaluation.fid import evaluate_samples

    config = CONFIG.value
    return lambda point: evaluate_samples(
        config,
        user_path(WORKDIR.value, "--workdir"),
        point.checkpoint,
        metrics=SAMPLE_METRICS[MODE.value],
        delta=point.delta,
        seed=point.seed,
        batch_size=BATCH_SIZE.value or config.eval.batch_size,
        num_gen=NUM_GEN.value,
        reference=REFERENCE.value,
        dataset_split=SPLIT.value or "train",
        cleanfid_mode=CLEANFID_MODE.value,
        feature_extractor=EXTRACTOR.value,
        inception_path=INCEPTION_PATH.value,
    )


def request(points: "list[Point]") -> "Callable[[Point], dict[str, Any]]":
    """What the scores of a point depend on besides itself. Raises UserError for a checkpoint that is not there."""
    from scripts.checkpoint import load_trained
    from scripts.provenance import config_hash
    from scripts.sampling.sampler import weights_checksum

    weights = {}
    for number in {point.checkpoint for point in points}:
        trained = load_trained(CONFIG.value, user_path(WORKDIR.value, "--workdir"), number)
        weights[number] = {"checkpoint_step": trained.step, "weights_crc32": weights_checksum(trained.model)}
    relevant = (SPLIT, NUM_IMAGES, NUM_LEVELS, EXACT) if MODE.value == "elbo" else (
        SPLIT, NUM_GEN, REFERENCE, CLEANFID_MODE, EXTRACTOR,
    )  # fmt: skip
    common = {"mode": MODE.value, "config_hash": config_hash(CONFIG.value), **{flag.name: flag.value for flag in relevant}}
    return lambda point: {**common, **weights[point.checkpoint]}


def save_statistics() -> int:
    """Make clean-fid statistics of a folder of images, as the flags say."""
    for needed in (CUSTOM_NAME, DATASET_PATH):
        if not needed.value:
            raise UserError(f"--save_stats needs --{needed.name}")
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


def check_combinations(swept: list[str]) -> None:
    """Raise UserError for flags that exclude or need each other."""
    finite("--delta", DELTA.value)
    for needed in (CONFIG, WORKDIR):
        if not needed.value:
            raise UserError(f"--{needed.name} is needed, except with --save_stats")
    for name in swept:
        if flags.FLAGS[name].present:
            raise UserError(f"--{name} and --sweep={name}=...: choose one of them")
    for name in ("custom_name", "dataset_path", "image_size"):
        if flags.FLAGS[name].present:
            raise UserError(f"--{name} goes with --save_stats")


if __name__ == "__main__":
    run(main)
