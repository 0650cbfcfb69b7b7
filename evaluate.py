"""Evaluate a trained model: a bound on its likelihood, or the quality of its samples.

python evaluate.py --config C --workdir W --checkpoint 0 --mode=elbo [--exact] [--delta=0.013]
python evaluate.py --config C --workdir W --checkpoint 0 --mode=fid --dataset_name_cleanfid=cifar10 --num_gen=50000
python evaluate.py --config C --workdir W --mode=elbo --sweep=delta=0.010:0.016:0.001
python evaluate.py --save_stats --custom_name=N --dataset_path=D

Scores are appended to runs/<dataset_name>/evaluation_results/<experiment_name>/, with everything that they depend on.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from scripts.config import define_config_flag, run
from scripts.errors import UserError

if TYPE_CHECKING:
    from scripts.results import Result
    from scripts.sweep import Point

SAMPLE_METRICS = {"fid": ("fid",), "kid": ("kid",), "prdc": ("prdc",), "all": ("fid", "kid", "prdc")}

CONFIG = define_config_flag(required=False)  # --save_stats needs none
WORKDIR = flags.DEFINE_string("workdir", None, "Run directory that train.py made.")
CHECKPOINT = flags.DEFINE_integer("checkpoint", 0, "n for checkpoints/checkpoint_n.pth, 0 for the newest.", lower_bound=0)
MODE = flags.DEFINE_enum("mode", "fid", ["elbo", *SAMPLE_METRICS], "What to compute; all: FID, KID and PRDC.")
DELTA = flags.DEFINE_float("delta", None, "Sampling noise; by default config.model.delta_over_sigma * sigma.", lower_bound=0)
SEED = flags.DEFINE_integer("seed", None, "Everything random is a function of it; by default config.seed.", lower_bound=0)
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
    "num_images", None, "elbo: images, the first ones, 0 for all; by default config.eval.num_images.", lower_bound=0
)
NUM_LEVELS = flags.DEFINE_integer("num_levels_per_image", 10, "elbo: levels drawn for each image.", lower_bound=1)
EXACT = flags.DEFINE_bool("exact", False, "elbo: all levels for every image.")

NUM_GEN = flags.DEFINE_integer("num_gen", 50000, "Samples to draw.", lower_bound=2)
REFERENCE = flags.DEFINE_string(
    "dataset_name_cleanfid", "", "clean-fid's name of the reference, an .npz, or a folder; by default the config's own data set."
)
CLEANFID_MODE = flags.DEFINE_enum(
    "cleanfid_mode", "clean", ["clean", "legacy_tensorflow", "legacy_pytorch"], "How clean-fid resizes."
)
EXTRACTOR = flags.DEFINE_enum("feature_extractor", "inception", ["inception", "classifier"], "What makes the features.")
INCEPTION_PATH = flags.DEFINE_string("inception_path", None, "inception-2015-12-05.pt, or the folder that it is in.")

SAVE_STATS = flags.DEFINE_bool("save_stats", False, "Make clean-fid statistics of a folder of images, and nothing else.")
CUSTOM_NAME = flags.DEFINE_string("custom_name", None, "With --save_stats: their name.")
DATASET_PATH = flags.DEFINE_string("dataset_path", None, "With --save_stats: the folder.")
IMAGE_SIZE = flags.DEFINE_integer("image_size", None, "With --save_stats: scale images to this size first.", lower_bound=1)


def main() -> int:
    """Check how the flags go together, evaluate, write the scores down."""
    if SAVE_STATS.value:
        return save_statistics()
    from scripts.sweep import Point, parse_sweeps, run_point, run_sweep

    axes = parse_sweeps(SWEEP.value)
    check_combinations(list(axes))
    from scripts.results import results_directory
    from scripts.samples import sampling_delta  # imports PyTorch, which --help and mistyped flags need not wait for

    config = CONFIG.value
    base = Point(
        delta=sampling_delta(config) if DELTA.value is None else DELTA.value,
        checkpoint=CHECKPOINT.value,
        seed=config.seed if SEED.value is None else SEED.value,
    )
    experiment = EXPERIMENT_NAME.value or Path(WORKDIR.value).resolve().name
    directory = results_directory(Path("runs"), DATASET_NAME.value or config.data.dataset.lower(), experiment)
    param_name = PARAM_NAME.value or ",".join(axes) or "delta"
    return 0


def evaluate(point: "Point") -> "list[Result]":
    """The scores of one point by --mode."""
    raise UserError("not yet")


def save_statistics() -> int:
    """Make clean-fid statistics."""
    raise UserError("not yet")


def check_combinations(swept: list[str]) -> None:
    """Raise UserError for flags that exclude or need each other."""
    for flag in (CONFIG, WORKDIR):
        if flag.value is None:
            raise UserError(f"--{flag.name} is needed, except with --save_stats")
    for flag in (DELTA, SEED):
        if flag.name in swept and flag.value is not None:
            raise UserError(f"--{flag.name} and --sweep={flag.name}=...: choose one of them")


if __name__ == "__main__":
    run(main)
