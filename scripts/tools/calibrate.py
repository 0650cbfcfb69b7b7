"""Measure the reverse kernels of a checkpoint without them: the release's, an older one, or with
more images.

python -m scripts.tools.calibrate --workdir W [--config C] [--checkpoint 0] [--num_images 48]

They are written beside the checkpoint as CHECKPOINT.calibration.pth; sample.py and evaluate.py
prefer them to what training measured.
"""

from scripts.config.flags import Values, run


def main(flags: Values) -> int:
    """Load, measure, write."""
    from model_code.gaussian import GaussianProcess
    from scripts.data.datasets import load_images
    from scripts.errors import UserError
    from scripts.sampling.calibration import calibrate, calibration_images
    from scripts.sampling.choice import Choice
    from scripts.sampling.sampler import load_sampler
    from scripts.storage.checkpoint import load_trained

    config = flags.config
    experiment = load_trained(config, flags.workdir, flags.checkpoint).experiment
    config, process = experiment.config, experiment.process
    if not isinstance(process, GaussianProcess):
        shown = f"config.model.process = {config.model.process!r}"
        raise UserError(f"{shown}: it has no kernels to measure")
    choice = Choice(process.sampling_noises[1])
    sampler, trained = load_sampler(flags.workdir, flags.checkpoint, config=config, choice=choice)
    source = load_images(config.data, "train")
    images, labels = calibration_images(source, flags.num_images, config)
    process = process.to(sampler.precision.device)
    seed, batch_size = config.seed, config.eval.batch_size
    state = calibrate(
        process, sampler.model, sampler.precision, images, seed, batch_size, labels=labels
    )
    assert state is not None
    path = trained.write_calibration(state)
    print(
        f"reverse kernels between {sampler.process.K + 1} levels, from {len(images)} images: {path}"
    )
    return 0


if __name__ == "__main__":
    run("calibrate", main)
