"""Evaluate a trained model: a bound on its likelihood, or the quality of its samples.

python evaluate.py --workdir W [--checkpoint 0] --mode=elbo [--exact] [--delta=0.013]
python evaluate.py --workdir W [--checkpoint 0] --mode=fid --dataset_name_cleanfid=cifar10 --num_gen=50000
python evaluate.py --workdir W --mode=elbo --sweep=delta=0.010:0.016:0.001
python evaluate.py --save_stats --custom_name=N --dataset_path=D

Scores are appended to runs/<dataset_name>/evaluation_results/<experiment_name>/, with everything that they depend on.
"""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from scripts.config.flags import (
    define_config_flag,
    define_init_flags,
    define_kernel_flags,
    define_path_flag,
    refuse_meaningless,
    run,
)
from scripts.config.release import define_release_flags
from scripts.errors import UserError
from scripts.evaluation.extractors import EXTRACTORS
from scripts.evaluation.metrics import MODES

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from scripts.evaluation.given import GivenSamples
    from scripts.evaluation.sweep import Evaluate, Point

CONFIG = define_config_flag(required=False)  # --save_stats needs none
WORKDIR = define_path_flag("workdir", "Run directory that train.py made.")
CHECKPOINT = flags.DEFINE_integer("checkpoint", 0, "n for checkpoints/checkpoint_n.pth, 0 for the newest.", lower_bound=0)
MODE = flags.DEFINE_enum("mode", "fid", ["elbo", *MODES], "What to compute; all: FID, KID and prdc.")
DELTA, STEPS, ETA = define_kernel_flags()
INIT, PER_INIT, FROM_LEVEL = define_init_flags()
SEED = flags.DEFINE_integer("seed", None, "Everything random is a function of it; by default config.seed.", 0, 2**64 - 1)
PRECISION = flags.DEFINE_enum("precision", "float32", ["float32", "bfloat16", "float16"], "What the network computes in.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Images at a time; by default config.eval.batch_size.", lower_bound=1)
SPLIT = flags.DEFINE_string("dataset_split", None, "Split to compare with; by default test for elbo, train otherwise.")
SWEEP = flags.DEFINE_multi_string(
    "sweep", [], "delta, steps, checkpoint or seed =first:last:step or =a,b,...; several times for all combinations."
)

DATASET_NAME = flags.DEFINE_string("dataset_name", None, "Folder of results below runs/; by default config.data.dataset.")
EXPERIMENT_NAME = flags.DEFINE_string("experiment_name", None, "Folder of results below that; by default --workdir's name.")
PARAM_NAME = flags.DEFINE_string(
    "param_name", None, "Settings, with commas, or a label at the start of the log's lines; by default those swept, or delta."
)

NUM_IMAGES = flags.DEFINE_integer(
    "num_images", None, "elbo: images, spread over the split, 0 for all; by default config.eval.num_images.", lower_bound=0
)
NUM_LEVELS = flags.DEFINE_integer("num_levels_per_image", 10, "elbo: levels drawn for each image.", lower_bound=1)
EXACT = flags.DEFINE_bool("exact", False, "elbo: all levels for every image.")
DEQUANTIZE = flags.DEFINE_bool("dequantize", True, "elbo: add uniform noise to 8-bit values, which bits/dim need.")

SAMPLES = flags.DEFINE_string(
    "samples", None, "Score these instead: a folder or an .npz (arr_0) of images, read as the reference is."
)
NUM_GEN = flags.DEFINE_integer("num_gen", 50000, "Samples to draw.", lower_bound=1)
REFERENCE = flags.DEFINE_string(
    "dataset_name_cleanfid", "", "Reference: clean-fid's name for it, an .npz or a folder; by default the config's data set."
)
CLEANFID_MODE = flags.DEFINE_enum(
    "cleanfid_mode", "clean", ["clean", "legacy_tensorflow", "legacy_pytorch"], "As clean-fid's modes."
)
EXTRACTOR = flags.DEFINE_enum("feature_extractor", "inception", list(EXTRACTORS), "What makes the features.")
INCEPTION_PATH = flags.DEFINE_string("inception_path", "", "inception-2015-12-05.pt, or the folder that it is in.")
DINOV2_PATH = define_path_flag("dinov2_path", "Weights of timm's vit_large_patch14_dinov2.lvd142m, a .safetensors file.")
NEIGHBOURS = flags.DEFINE_integer("k", 5, "prdc: nearest neighbours; Kynkaanniemi et al. have 3.", lower_bound=1)

OUT = define_path_flag("out", "Where results go; by default runs/<dataset_name>/evaluation_results/<experiment_name>.")
SAVE_STATS = flags.DEFINE_bool("save_stats", False, "Make clean-fid statistics of a folder of images, and nothing else.")
CUSTOM_NAME = flags.DEFINE_string("custom_name", "", "With --save_stats: their name.")
DATASET_PATH = define_path_flag("dataset_path", "With --save_stats: the folder.")
define_release_flags()

SETTINGS = (MODE, SPLIT, NUM_IMAGES, NUM_LEVELS, EXACT, DEQUANTIZE, NUM_GEN, REFERENCE, CLEANFID_MODE, EXTRACTOR, NEIGHBOURS)
"""Flags that scores depend on, besides those that the sampler's settings contain."""


def main() -> int:
    """Check how the flags go together, evaluate, write the scores down."""
    given = SAMPLES.value is not None
    for flag in (CUSTOM_NAME, DATASET_PATH) if SAVE_STATS.value else () if given and CONFIG.value else (WORKDIR,):
        if not flag.value:
            raise UserError(f"--{flag.name} is needed {'with' if SAVE_STATS.value else 'without'} --save_stats")
    refuse_meaningless(
        (INIT, MODE.value == "elbo" and "with --mode=elbo"),
        *((flag, INIT.value is None and MODE.value != "diversity" and "without --init") for flag in (PER_INIT, FROM_LEVEL)),
        *((flag, given and "with --samples") for flag in (CHECKPOINT, DELTA, STEPS, ETA, INIT, PRECISION, SWEEP)),
        (SAMPLES, MODE.value in ("elbo", "diversity") and f"with --mode={MODE.value}"),
    )
    from scripts.runtime import distributed  # imports PyTorch, which --help and mistyped flags need not wait for

    with distributed.processes():
        if SAVE_STATS.value:
            return save_statistics() if distributed.is_main() else 0
        return evaluate()


def evaluate() -> int:
    """Evaluate at one point, or at all that --sweep names."""
    from scripts.config.checks import validate
    from scripts.evaluation import results, sweep
    from scripts.evaluation.given import GivenSamples
    from scripts.runtime import distributed
    from scripts.sampling.choice import parse_delta
    from scripts.storage.checkpoint import saved_config
    from scripts.storage.files import make_directory

    workdir = WORKDIR.value
    config = CONFIG.value or saved_config(workdir, CHECKPOINT.value)
    validate(config)
    axes = sweep.parse_sweeps(SWEEP.value)
    for name in axes:
        if flags.FLAGS[name].present:
            raise UserError(f"--{name} and --sweep={name}=...: choose one of them")
    seed = config.seed if SEED.value is None else SEED.value
    delta = None if DELTA.value is None else parse_delta(DELTA.value)
    base = sweep.Point(
        delta, STEPS.value, ETA.value, INIT.value, PER_INIT.value, FROM_LEVEL.value, checkpoint=CHECKPOINT.value, seed=seed
    )
    dataset = DATASET_NAME.value or config.data.dataset.lower()
    given = None if SAMPLES.value is None else GivenSamples.read(SAMPLES.value, config, seed)
    experiment = EXPERIMENT_NAME.value or (workdir.resolve().name if given is None else Path(given.name).resolve().stem)
    directory = OUT.value or results.results_directory(results.RUNS, dataset, experiment)
    cache = workdir / "evaluation" if OUT.value is None and workdir else directory / "features"
    if distributed.is_main():  # before anything is computed
        for place in (directory,) if MODE.value == "elbo" else (directory, cache):
            make_directory(place, "--out")
    evaluate_point = evaluation(config, directory, cache, given)
    param_name = PARAM_NAME.value or ",".join(axes) or ("delta" if given is None else "samples")
    of_run = workdir if given is None else None
    runner = sweep.Runner(evaluate_point, directory, functools.partial(request, config), param_name, of_run)
    if not axes:
        runner.run_point(base)
        print(f"scores appended to {directory}")
        return 0
    scores = runner.run(sweep.sweep_points(base, axes))
    if distributed.is_main():
        print(sweep.report(scores, axes, directory))
    return 0


def evaluation(config: "ConfigDict", directory: "Path", cache: "Path", given: "GivenSamples | None") -> "Evaluate":
    """What --mode names, as the flags say; the bound's tables by level go to `directory`, features to `cache`."""
    batch_size = BATCH_SIZE.value or config.eval.batch_size
    if MODE.value == "elbo":
        from scripts.evaluation.bound import BoundEvaluation

        bound = BoundEvaluation(
            config,
            WORKDIR.value,
            split=SPLIT.value or "test",
            num_images=config.eval.num_images if NUM_IMAGES.value is None else NUM_IMAGES.value,
            batch_size=batch_size,
            num_levels_per_image=NUM_LEVELS.value,
            exact=EXACT.value,
            dequantize=DEQUANTIZE.value,
            precision=PRECISION.value,
        )
        return lambda point: bound(checkpoint=point.checkpoint, choice=point, seed=point.seed, directory=directory)
    from scripts.evaluation.scores import SampleEvaluation

    samples = SampleEvaluation(
        config,
        WORKDIR.value,
        cache=cache,
        metrics=MODES[MODE.value],
        batch_size=batch_size,
        reference=REFERENCE.value,
        dataset_split=SPLIT.value or "train",
        num_gen=NUM_GEN.value if given is None or flags.FLAGS["num_gen"].present else len(given.images),
        given=given,
        cleanfid_mode=CLEANFID_MODE.value,
        feature_extractor=EXTRACTOR.value,
        inception_path=INCEPTION_PATH.value,
        dinov2_path=DINOV2_PATH.value,
        k=NEIGHBOURS.value,
        precision=PRECISION.value,
    )
    return lambda point: samples(checkpoint=point.checkpoint, choice=point, seed=point.seed)


def request(config: "ConfigDict", point: "Point") -> dict[str, Any]:
    """What the scores of a point depend on, as plain data. Raises UserError for a checkpoint that is not there."""
    from scripts.sampling.sampler import load_sampler
    from scripts.storage.provenance import config_hash

    sampler, trained = load_sampler(
        config, WORKDIR.value, point.checkpoint, choice=point, seed=point.seed, precision=PRECISION.value, scoring=True
    )
    return {
        "config_hash": config_hash(config),
        **sampler.settings(config, trained),
        **{flag.name: flag.value for flag in SETTINGS},
        **{flag.name: str(flag.value) for flag in (INCEPTION_PATH, DINOV2_PATH) if flag.value},
    }


def save_statistics() -> int:
    """Make clean-fid statistics of a folder of images, as the flags say."""
    from scripts.evaluation import references
    from scripts.evaluation.inception import InceptionFeatures
    from scripts.runtime.device import resolve_device

    mode, name = CLEANFID_MODE.value, CUSTOM_NAME.value
    extractor = InceptionFeatures(mode, INCEPTION_PATH.value, resolve_device("auto"))
    path = references.save_statistics(name, DATASET_PATH.value, extractor, mode, BATCH_SIZE.value or 64)
    print(f"statistics in {path}: --dataset_name_cleanfid={name} --dataset_split=custom")
    return 0


if __name__ == "__main__":
    run(main)
