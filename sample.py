"""Draw samples from a trained model.

python sample.py --workdir W [--checkpoint 0] [--batch_size=9] [--same_init | --share_noise | --interpolate]
python sample.py --workdir W --init=photo.png --from_level=60

The configuration is the run's own; the release's checkpoints have none, and need --config.
"""

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

CONFIG = define_config_flag(required=False)
WORKDIR = define_path_flag("workdir", "Run directory that train.py made.", required=True)
CHECKPOINT = flags.DEFINE_integer("checkpoint", 0, "n for checkpoints/checkpoint_n.pth, 0 for the newest.", lower_bound=0)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 9, "Samples in a picture, or at a time in an export.", lower_bound=1)
DELTA, STEPS, ETA = define_kernel_flags()
SEED = flags.DEFINE_integer("seed", None, "Sample i is a function of (seed, i); by default config.seed.", 0, 2**64 - 1)
INIT, PER_INIT, FROM_LEVEL = define_init_flags()
PRIOR = flags.DEFINE_enum("prior", "bank", ["bank", "data"], "Initial states from the checkpoint, or from the data set.")
PRECISION = flags.DEFINE_enum("precision", "float32", ["float32", "bfloat16", "float16"], "What the network computes in.")
SAME_INIT = flags.DEFINE_bool("same_init", False, "One initial state for all samples.")
SHARE_NOISE = flags.DEFINE_bool("share_noise", False, "One noise sequence for all samples.")
INTERPOLATE = flags.DEFINE_bool("interpolate", False, "A path from one sample to another.")
NUM_POINTS = flags.DEFINE_integer("num_points", 20, "Points on that path, both ends included.", lower_bound=2)
NUMBER = flags.DEFINE_integer("number", None, "Draw the i-th batch of samples instead of the first, 0.", lower_bound=0)
SAVE_SAMPLE_FREQ = flags.DEFINE_integer("save_sample_freq", None, "Keep every F-th state of the process.", lower_bound=1)
NUM_SAMPLES = flags.DEFINE_integer("num_samples", None, "With --export_dir: samples to write as single images.", lower_bound=1)
EXPORT = flags.DEFINE_enum("export", "png", ["png", "npz"], "npz: beside the single images one array, uint8 (N, H, W, C).")
OUT = define_path_flag("out", "Where pictures go; by default additional_samples in --workdir.")
EXPORT_DIR = define_path_flag("export_dir", "Where to; an export that was interrupted is continued.")
define_release_flags()


def main() -> int:
    """Check how the flags go together, draw."""
    check_combinations()
    from scripts.runtime import distributed  # imports PyTorch, which --help and mistyped flags need not wait for

    with distributed.processes():
        return draw()


def draw() -> int:
    """Load the model and draw: single images in all processes, pictures in the first."""
    from scripts.runtime import distributed
    from scripts.sampling import output
    from scripts.sampling.choice import Choice
    from scripts.sampling.export import export
    from scripts.sampling.sampler import load_sampler
    from scripts.storage.checkpoint import saved_config
    from scripts.storage.files import make_directory

    workdir, export_dir = WORKDIR.value, EXPORT_DIR.value
    config = CONFIG.value or saved_config(workdir, CHECKPOINT.value)
    base = (OUT.value or workdir / "additional_samples") / f"checkpoint_{CHECKPOINT.value}"
    sampler, trained = load_sampler(
        config,
        workdir,
        CHECKPOINT.value,
        choice=Choice(DELTA.value, STEPS.value, ETA.value, INIT.value, PER_INIT.value, FROM_LEVEL.value),
        seed=SEED.value,
        precision=PRECISION.value,
        from_data=PRIOR.value == "data",
    )
    if export_dir is not None and NUM_SAMPLES.value is not None:
        settings = sampler.settings(config, trained)
        export(export_dir, sampler, settings, NUM_SAMPLES.value, BATCH_SIZE.value, npz=EXPORT.value == "npz")
        print(f"{NUM_SAMPLES.value} samples in {export_dir}")
        return 0
    if not distributed.is_main():
        return 0
    make_directory(base, "--out")
    # Another seed or batch has a name of its own; for whatever else differs see `own_directory`.
    suffix = "" if sampler.seed == config.seed else f"_seed_{sampler.seed}"
    suffix += "" if NUMBER.value is None else f"_{NUMBER.value}"
    number = NUMBER.value or 0
    whole = INTERPOLATE.value or SHARE_NOISE.value
    sampler, batch_size = output.fill_rows(sampler, BATCH_SIZE.value, 1 if whole else PER_INIT.value)
    settings = sampler.settings(config, trained) | {"prior": PRIOR.value}
    if INTERPOLATE.value:
        ends = 2 * number, 2 * number + 1
        settings |= {"kind": "interpolation", "ends": list(ends), "num_points": NUM_POINTS.value}
        directory = output.own_directory(base / f"interpolate_delta_{sampler.label}{suffix}", settings)
        output.interpolation_set(directory, sampler, ends, NUM_POINTS.value)
    else:
        kind: output.Kind = "same_init" if SAME_INIT.value else "share_noise" if SHARE_NOISE.value else "independent"
        shared = "" if kind == "independent" else f"_{kind}"
        indices = range(number * batch_size, (number + 1) * batch_size)
        settings |= {"kind": kind, "samples": [indices.start, indices.stop], "save_sample_freq": SAVE_SAMPLE_FREQ.value}
        directory = output.own_directory(base / f"delta_{sampler.label}{shared}{suffix}", settings)
        output.sample_set(directory, sampler, indices, kind=kind, every=SAVE_SAMPLE_FREQ.value)
    print(f"step {trained.step}, delta {sampler.label}, seed {sampler.seed}: {directory}")
    return 0


def check_combinations() -> None:
    """Raise UserError for flags that exclude or need each other."""
    chosen = [f"--{flag.name}" for flag in (SAME_INIT, SHARE_NOISE, INTERPOLATE) if flag.value]
    if EXPORT_DIR.value is not None:
        chosen.append("--export_dir")
    if len(chosen) > 1:
        raise UserError(f"{' and '.join(chosen)}: choose one of them")
    exported = EXPORT_DIR.value is not None
    refuse_meaningless(
        (NUM_POINTS, not INTERPOLATE.value and "without --interpolate"),
        (EXPORT, not exported and "without --export_dir"),
        (NUMBER, exported and "with --export_dir"),
        (OUT, exported and "with --export_dir"),
        (SAVE_SAMPLE_FREQ, (exported or INTERPOLATE.value) and f"with {chosen[0]}"),
        (PRIOR, INIT.value is not None and "with --init"),
        (PER_INIT, bool(chosen) and not exported and f"with {chosen[0]}"),
        (PER_INIT, INIT.value is None and "without --init"),
        (FROM_LEVEL, INIT.value is None and "without --init"),
    )
    if (NUM_SAMPLES.value is None) != (EXPORT_DIR.value is None):
        raise UserError("--num_samples and --export_dir go together: how many single images, and where to")


if __name__ == "__main__":
    run(main)
