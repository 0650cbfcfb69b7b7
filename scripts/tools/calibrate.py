"""Measure the reverse kernels of a checkpoint without them: the release's, an older one, or with more images.

python -m scripts.tools.calibrate --config C --workdir W [--checkpoint 0] [--num_images 48]

They are written beside the checkpoint as CHECKPOINT.noise.pth; sample.py and evaluate.py prefer them to what training measured.
"""

from absl import flags

from scripts.config.flags import define_config_flag, define_path_flag, run

CONFIG = define_config_flag()
WORKDIR = define_path_flag("workdir", "Run directory.", required=True)
CHECKPOINT = flags.DEFINE_integer("checkpoint", 0, "n for checkpoints/checkpoint_n.pth, 0 for the newest.", lower_bound=0)
NUM_IMAGES = flags.DEFINE_integer("num_images", 48, "Training images, each seen once at every level.", lower_bound=2)


def main() -> int:
    """Load, measure, write."""
    from scripts.data.datasets import load_images
    from scripts.errors import UserError
    from scripts.sampling.choice import Choice
    from scripts.sampling.measurement import calibrate, images_to_measure
    from scripts.sampling.sampler import load_sampler
    from scripts.storage.checkpoint import load_trained

    config = CONFIG.value
    if not load_trained(config, WORKDIR.value, CHECKPOINT.value).process.calibrates:
        raise UserError(f"config.model.process = {config.model.process!r}: it has no kernels to measure")
    sampler, trained = load_sampler(config, WORKDIR.value, CHECKPOINT.value, choice=Choice("isotropic"))
    images = images_to_measure(load_images(config.data, "train"), NUM_IMAGES.value, config.data.uniform_dequantization)
    state = calibrate(sampler.process, sampler.model, sampler.precision, images, config.seed, config.eval.batch_size)
    assert state is not None
    path = trained.write_measured(state)
    print(f"reverse kernels between {sampler.process.K + 1} levels, from {len(images)} images: {path}")
    return 0


if __name__ == "__main__":
    run(main)
