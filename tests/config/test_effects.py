"""Every flag that is accepted beside others changes what a command makes, or what it records."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sample
from scripts.config.flags import NO_EFFECT, flags_of, parse
from scripts.evaluation import command, results, sweep
from scripts.sampling.sampler import Sampler
from scripts.storage import checkpoint
from scripts.training.loop import train
from tests.config.test_flags import MEANINGFUL, names_of
from tests.conftest import bad_input
from tests.images import random_pixels
from tests.tiny import tiny_config
from tests.training.runs import array_config

ANOTHER: dict[str, Any] = {
    "checkpoint": 1, "batch_size": 3, "delta": 0.02, "steps": 2, "eta": 0.5, "seed": 3,
    "precision": "float16", "sampler": "heun", "init": "held_out", "prior": "data", "number": 1,
    "same_init": True, "share_noise": True, "interpolate": True, "num_points": 3,
    "save_sample_freq": 2, "per_init": 2, "from_level": 2, "export": "npz", "mode": "spectrum",
    "sweep": "seed=1,2", "dataset_name": "other", "experiment_name": "other",
    "param_name": "other", "num_gen": 60, "dataset_split": "held_out", "num_images": 3,
    "exact": True, "dequantize": False, "num_levels_per_image": 1, "k": 3,
    "feature_extractor": "classifier", "cleanfid_mode": "legacy_pytorch", "inception_path": "other",
    "blur": 3, "class": 1, "guidance": 2, "guidance_interval": "1,2", "per_class": True,
}  # fmt: skip
"""A value of each flag that is not its default; paths come from the test."""
REFUSED_LATER = {
    "sampler": "the network must predict",
    "sweep": "no longer a flag",
}
"""Flags that a model or a later check may refuse."""
FROM_PICTURES = {"super_resolve", "inpaint", "edit"}
WITHOUT_EFFECT = {"interpolate": {"batch_size"}}
"""As in the release."""
Made = dict[str, object]
read_once = functools.cache(checkpoint.read)


class Extractor:
    """In place of each, identified by what it is made from."""

    num_features = 1

    def __init__(self, *arguments: object) -> None:
        self.settings = {"extractor": repr(arguments), "mode": "clean"}

    def __call__(self, pixels: torch.Tensor) -> np.ndarray:
        """Means."""
        return pixels.float().mean((1, 2, 3)).numpy()[:, None]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, two sets of images, and a configuration with another seed."""
    place = tmp_path_factory.mktemp("effects")
    images = random_pixels(220, 8, 8)
    np.savez(place / "data.npz", arr_0=images[:120], labels=np.arange(120) % 3)
    np.savez(place / "images.npz", arr_0=images[120:180])
    np.savez(place / "other_images.npz", arr_0=images[180:])
    for name, pixels in {
        "picture": images[0], "other": images[1], "small": images[0, :4, :4],
        "mask": np.eye(8, dtype=np.uint8) * 255, "other_mask": np.tri(8, dtype=np.uint8) * 255,
    }.items():  # fmt: skip
        Image.fromarray(pixels).save(place / f"{name}.png")
    steps = {"training__n_iters": 2, "training__snapshot_freq": 1, "model__K": 4}
    for name, seed in (("run", 1), ("another_run", 2)):
        config = array_config(place / "data.npz", seed=seed, **steps)
        config.data.labels, config.model.class_conditional = "labels", True
        assert train(config, place / name) == 0
    (place / "another.json").write_text(
        (place / "run" / "config.json").read_text().replace('"seed": 1', '"seed": 5')
    )
    return place


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, place: Path, tmp_path: Path) -> Made:
    """What the command in this process made, with what takes time replaced."""
    made: Made = {}
    for name in ("save_mp4", "save_gif"):
        monkeypatch.setattr(f"scripts.sampling.output.{name}", lambda path, frames: None)
    monkeypatch.setattr(checkpoint, "read", read_once)
    independent = Sampler.independent

    def count(sampler: Sampler, indices: Sequence[int], *rest: Any) -> torch.Tensor:
        made.setdefault("drawn at a time", len(indices))
        return independent(sampler, indices, *rest)

    def note(runner: sweep.Runner, point: results.Point) -> None:
        made["checkpoint"] = point.checkpoint
        made["cache"] = getattr(runner.evaluation, "cache", None)
        made["record"] = runner.evaluation.record(point).key
        made["places"] = runner.directory, runner.param_name, runner.workdir
        made["images at a time"] = runner.evaluation.batch_size
        made["mode"] = type(runner.evaluation)

    monkeypatch.setattr(Sampler, "independent", count)
    monkeypatch.setattr(sweep.Runner, "run_point", note)
    monkeypatch.setattr(results, "RUNS", tmp_path / "runs")
    for name in ("classifier_features", "DINOv2Features", "InceptionFeatures"):
        monkeypatch.setattr(command, name, Extractor)
    return made


def outcome(
    command_name: str, options: Mapping[str, object], directory: Path, made: Made
) -> dict[str, object]:
    """What the command makes, as far as `made` notes it, and the files below the directory."""
    made.clear()
    words = [f"--{name}={value}" for name, value in options.items()]
    flags = parse(command_name, ["program", *words])
    {"sample": sample.draw, "evaluate": command.evaluate}[command_name](flags)
    files = {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }
    return made | files


@pytest.mark.parametrize(
    ("command_name", "words", "meaningful"),
    [row for row in MEANINGFUL if row[0] != "train" and "save_stats" not in row[1]],
)
def test_an_accepted_flag_changes_something(
    command_name: str, words: str, meaningful: str, place: Path, tmp_path: Path, made: Made
) -> None:
    """Beside the words of `MEANINGFUL`."""
    paths = {
        "config": place / "another.json",
        "workdir": place / "another_run",
        "samples": place / "images.npz",
        "dataset_name_cleanfid": place / "other_images.npz",
        "inception_path": place / "other.pt",
        "dinov2_path": place / "other.safetensors",
        "super_resolve": place / "small.png",
        "inpaint": place / "other.png",
        "edit": place / "other.png",
        "mask": place / "other_mask.png",
    }
    another = ANOTHER | paths
    observed = words in ("super_resolve", "inpaint mask")
    refused = REFUSED_LATER | ({"delta": "needs the calibrated kernel"} if observed else {})

    def options(number: int) -> dict[str, object]:
        """Of the words alone."""
        base: dict[str, object] = {"workdir": place / "run"}
        base |= (
            {"batch_size": 2, "out": tmp_path / f"{number}/a"} if command_name == "sample" else {}
        )
        few = {"num_gen": 40, "num_levels_per_image": 2}
        base |= {name: few[name] for name in few.keys() & set(meaningful.split())}
        own = {"export_dir": tmp_path / f"{number}/a", "num_samples": 5, "out": tmp_path / "out"}
        for word in words.split():
            name, _, value = word.partition("=")
            base[name] = value or (another | own)[name]
        if "export_dir" in base:
            del base["out"], base["batch_size"]
        if base.keys() & FROM_PICTURES:
            del base["batch_size"]
            base["class"] = 0  # without, nothing is guided
        if "samples" in base:
            del base["workdir"]
            base["config"] = place / "run" / "config.json"
        return base

    plain = outcome(command_name, options(0), tmp_path / "0", made)
    unread = {flag.name for flag in flags_of(command_name) if flag.help == NO_EFFECT}
    without_effect = set()
    for number, name in enumerate(sorted(set(meaningful.split()) - names_of(words) - unread), 1):
        own = {"out": tmp_path / f"{number}/b", "export_dir": tmp_path / f"{number}/b"}
        changed = options(number) | {name: (another | own)[name]}
        if name == "exact":
            del changed["num_levels_per_image"]
        if name == "export_dir":
            del changed["out"]
            changed["num_samples"] = 2
        if name in FROM_PICTURES:
            del changed["batch_size"]
            changed["class"] = 0
            beside: dict[str, dict[str, object]] = {
                "inpaint": {"mask": paths["mask"]},
                "edit": {"blur": 3},
            }
            changed |= beside.get(name, {})
        if name in refused:
            with bad_input(refused[name]):
                outcome(command_name, changed, tmp_path / str(number), made)
        elif outcome(command_name, changed, tmp_path / str(number), made) == plain:
            without_effect.add(name)
    assert without_effect == WITHOUT_EFFECT.get(words, set())


def test_an_export_draws_as_many_images_at_a_time_as_an_evaluation(
    place: Path, tmp_path: Path, made: Made
) -> None:
    options = {"workdir": place / "run", "export_dir": tmp_path / "export", "num_samples": 9}
    outcome("sample", options, tmp_path, made)
    assert made["drawn at a time"] == tiny_config().eval.batch_size


@pytest.mark.parametrize("read", ["init", "dataset_name_cleanfid", "samples"])
def test_no_results_among_images_that_are_read(read: str, place: Path, tmp_path: Path) -> None:
    options = {"config": place / "run" / "config.json", read: tmp_path, "out": tmp_path / "scores"}
    if read == "samples":
        Image.new("L", (8, 8)).save(tmp_path / "0.png")
    else:
        options["workdir"] = place / "run"
    with bad_input(f"pictures there would become images of --{read} = "):
        outcome("evaluate", options, tmp_path, {})
    assert not (tmp_path / "scores").exists()
