"""What evaluate.py does: one evaluation, or a sweep of them, as the flags say."""

from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from scripts.config.flags import Values
from scripts.config.resolve import validate
from scripts.data.datasets import require_outside_data
from scripts.errors import UserError
from scripts.evaluation import references, results, sweep
from scripts.evaluation.bound import BoundEvaluation
from scripts.evaluation.classifier import classifier_features
from scripts.evaluation.dinov2 import DINOv2Features
from scripts.evaluation.features import Extractor
from scripts.evaluation.inception import InceptionFeatures
from scripts.evaluation.metrics import MODES
from scripts.evaluation.scores import SampleEvaluation, SampleFiles
from scripts.runtime import distributed
from scripts.runtime.device import choose_threads, resolve_device
from scripts.storage.checkpoint import run_directory, saved_config
from scripts.storage.files import make_directory

NUM_GEN = 50_000
"""Samples to draw by default."""


def evaluate(flags: Values) -> int:
    """Evaluate at one point, or at all points of a sweep."""
    if flags.sweep:
        new_form = " ".join(f"--{text}" for text in flags.sweep)
        raise UserError(f"--sweep is no longer a flag: write {new_form}")
    choose_threads()
    workdir: Any = None if flags.workdir is None else run_directory(flags.workdir)
    checkpoints = sweep.parse_list("checkpoint", flags.checkpoint)
    config = flags.config or saved_config(flags.workdir, checkpoints[0])
    validate(config)
    seeds = [config.seed] if flags.seed is None else sweep.parse_list("seed", flags.seed)
    guidances = sweep.parse_list("guidance", flags.guidance or "1")
    axes = {
        "delta": [None] if flags.delta is None else sweep.parse_list("delta", flags.delta),
        "steps": [None] if flags.steps is None else sweep.parse_list("steps", flags.steps),
        "guidance": [None] if flags.guidance is None else guidances,
        "checkpoint": checkpoints,
        "seed": seeds,
    }  # the first changes fastest: another delta needs no new network calls for the bound
    swept = [name for name, values in axes.items() if len(values) > 1]
    if flags.samples is not None and swept:
        raise UserError(f"--seed={flags.seed}: must be one with --samples")
    points = sweep.sweep_points(
        axes,
        eta=flags.eta,
        sampler=flags.sampler,
        init=flags.init,
        per_init=flags.per_init,
        from_level=flags.from_level,
        guidance_interval=flags.guidance_interval,
    )
    files = None if flags.samples is None else SampleFiles.read(flags.samples, config, seeds[0])
    directory, cache = make_places(flags, config, files)
    param_name = flags.param_name or ",".join(swept) or ("delta" if files is None else "samples")
    of_run = workdir if files is None else None
    runner = sweep.Runner(
        evaluation(flags, config, directory, cache, files), directory, param_name, of_run
    )
    if not swept:
        runner.run_point(points[0])
        print(f"scores appended to {directory}")
        return 0
    scores = runner.run(points)
    if distributed.is_main():
        print(sweep.report(scores, swept, directory))
    return 0


def make_places(flags: Values, config: ConfigDict, files: SampleFiles | None) -> tuple[Path, Path]:
    """Make the directories of logs and of features, and return them.

    Raises UserError for directories among images that are read, and for those that cannot be
    written to.
    """
    workdir: Any = None if flags.workdir is None else run_directory(flags.workdir)
    run_with_its_name = None
    experiment = flags.experiment_name
    if not experiment and files is not None:
        experiment = Path(files.name).resolve().stem
    elif not experiment:
        experiment, run_with_its_name = workdir.resolve().name, workdir
    dataset = flags.dataset_name or config.data.dataset.lower()
    directory = flags.out or results.results_directory(
        results.RUNS, dataset, experiment, run_with_its_name
    )
    cache = workdir / "evaluation" if flags.out is None and workdir else directory / "features"
    if not distributed.is_main():
        return directory, cache
    places = [directory]
    if flags.mode != "elbo":
        places.append(cache)
    for place in places:
        require_outside_data(
            place,
            "--out",
            config.data,
            samples=flags.samples,
            dataset_name_cleanfid=flags.dataset_name_cleanfid,
            init=None if flags.init in ("held_out", "train") else flags.init,
        )
        make_directory(place, "--out")
    if flags.out is None and run_with_its_name is not None:
        (directory / results.OWNER).write_text(str(workdir.resolve()))
    return directory, cache


def evaluation(
    flags: Values, config: ConfigDict, directory: Path, cache: Path, files: SampleFiles | None
) -> BoundEvaluation | SampleEvaluation:
    """Return what --mode names; tables of the bound by level go to `directory`, features to
    `cache`."""
    batch_size = flags.batch_size or config.eval.batch_size
    if flags.mode == "elbo":
        return BoundEvaluation(
            config,
            flags.workdir,
            directory,
            split=flags.dataset_split or "test",
            num_images=config.eval.num_images if flags.num_images is None else flags.num_images,
            batch_size=batch_size,
            num_levels_per_image=flags.num_levels_per_image,
            exact=flags.exact,
            dequantize=flags.dequantize,
            precision=flags.precision,
        )
    if flags.mode == "classes" and "classifier" not in flags.feature_extractor:
        needed = "needs classifier or robust_classifier with --mode=classes"
        raise UserError(f"--feature_extractor={flags.feature_extractor}: {needed}")
    reference = flags.dataset_name_cleanfid
    if flags.dataset_split and ("/" in reference or reference.endswith(".npz")):
        shown = f"--dataset_name_cleanfid={reference}"
        raise UserError(f"--dataset_split has no meaning with {shown}: leave it out")
    return SampleEvaluation(
        config,
        flags.workdir,
        cache=cache,
        metrics=MODES[flags.mode],
        batch_size=batch_size,
        reference=reference,
        dataset_split=flags.dataset_split or "train",
        num_gen=flags.num_gen or (NUM_GEN if files is None else len(files.images)),
        files=files,
        per_class=flags.per_class,
        make_extractor=partial(make_extractor, flags, config, cache),
        k=flags.k,
        precision=flags.precision,
    )


def make_extractor(flags: Values, config: ConfigDict, cache: Path) -> Extractor:
    """Return what --feature_extractor names; a classifier that is trained for it goes to
    `cache`."""
    device = resolve_device(config.device)
    if flags.feature_extractor in ("classifier", "robust_classifier"):
        return classifier_features(cache, config.data, device, flags.feature_extractor)
    channels = config.data.num_channels
    if channels not in (1, 3):
        other = "choose --mode=spectrum, copying or elbo, or --feature_extractor=classifier"
        raise UserError(
            f"--feature_extractor={flags.feature_extractor}: sees grey or RGB, and "
            f"config.data.num_channels = {channels}; {other}"
        )
    if flags.feature_extractor == "dinov2":
        return DINOv2Features(flags.dinov2_path, device)
    return InceptionFeatures(flags.cleanfid_mode, flags.inception_path, device)


def save_statistics(flags: Values) -> None:
    """Make clean-fid statistics of a folder of images, as the flags say."""
    mode, name = flags.cleanfid_mode, flags.custom_name
    extractor = InceptionFeatures(mode, flags.inception_path, resolve_device("auto"))
    path = references.save_statistics(
        name, flags.dataset_path, extractor, mode, flags.batch_size or 64
    )
    print(f"statistics in {path}: --dataset_name_cleanfid={name} --dataset_split=custom")
