"""A published run: small, sampled from without any data set, and not taken for a run that could go
on.
"""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from scripts.config.flags import parse
from scripts.config.paths import ROOT
from scripts.evaluation.results import RESULTS
from scripts.sampling.choice import Choice
from scripts.sampling.sampler import load_sampler
from scripts.storage import checkpoint
from scripts.storage.files import read_json_lines
from scripts.storage.published import write_published
from scripts.tools.publish import describe_prior, main, publish, write_card
from scripts.training.loop import train
from tests.conftest import bad_input
from tests.images import save_images
from tests.tiny import tiny_config

CARD_SETTINGS = ("cc0-1.0", "", 2)


def samples(workdir: Path, **overrides: object) -> torch.Tensor:
    sampler, _ = load_sampler(workdir, config=tiny_config(**overrides), choice=Choice("calibrated"))
    return sampler.independent([0, 1, 2])


def test_samples_are_those_of_the_run_and_need_no_data_set(
    trained_run: Path, tmp_path: Path
) -> None:
    path = publish(trained_run, tmp_path)
    assert path.stat().st_size < checkpoint.meta_path(trained_run).stat().st_size / 2, (
        "no optimizer, no second copy of the weights"
    )
    assert torch.equal(
        samples(tmp_path, data__path=str(tmp_path / "no such file")), samples(trained_run)
    )
    rows = [row for row in read_json_lines(trained_run / "metrics.jsonl") if "event" not in row]
    assert rows
    assert read_json_lines(tmp_path / "metrics.jsonl") == rows


def test_training_does_not_go_on_from_it(trained_run: Path, tmp_path: Path) -> None:
    path = publish(trained_run, tmp_path)
    before = path.read_bytes()
    with bad_input(r"model\.safetensors"):
        train(tiny_config(training__n_iters=8), tmp_path)
    assert path.read_bytes() == before
    assert not checkpoint.meta_path(tmp_path).exists()


def test_a_run_is_not_published_over_another(trained_run: Path, tmp_path: Path) -> None:
    with bad_input("can be trained further; choose another"):
        publish(trained_run, trained_run)
    with bad_input("there is no checkpoint of this program in it"):
        publish(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    other = tmp_path / "notes"
    other.mkdir()
    (other / "config.json").write_text("somebody's")
    with bad_input("there are other files in it; choose a new directory"):
        publish(trained_run, other)
    assert (other / "config.json").read_text() == "somebody's"
    path = publish(trained_run, tmp_path / "out")
    before = path.read_bytes()
    contents = checkpoint.read(checkpoint.meta_path(trained_run))
    next(iter(contents["ema"]["shadow"].values())).view(-1)[0] += 1
    checkpoint.write(checkpoint.meta_path(tmp_path / "other"), contents)
    with bad_input("other weights are published there; choose another directory"):
        publish(tmp_path / "other", tmp_path / "out")
    assert path.read_bytes() == before
    assert publish(trained_run, tmp_path / "out") == path, "the same again"


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("process.safetensors", "process.safetensors: there is no such file"),
        ("model.safetensors", "not those that process.safetensors beside it belongs to"),
        ("cut", "model.safetensors: damaged, or not published by this program"),
        ("flipped", "it or process.safetensors beside it is damaged .checksum"),
        ("README.md", "README.md: was not written by this command"),
    ],
)
def test_halves_of_a_published_model(
    file: str, message: str, trained_run: Path, tmp_path: Path
) -> None:
    """One without the other, of other weights, damaged, or beside a card that somebody wrote."""
    out = tmp_path / "out"
    path = publish(trained_run, out)
    of_run = checkpoint.read(checkpoint.meta_path(trained_run))["ema"]["shadow"]
    assert load_file(path).keys() == of_run.keys(), "names as in the network"
    if file == "process.safetensors":
        (out / file).unlink()
    elif file == "model.safetensors":
        contents = checkpoint.read(path)
        next(iter(contents["ema"]["shadow"].values())).view(-1)[0] += 1
        (tmp_path / "other").mkdir()
        write_published(tmp_path / "other", contents, checkpoint.weights_crc32(contents))
        (tmp_path / "other" / file).replace(path)
    elif file == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif file == "flipped":
        place = out / "process.safetensors"
        data = bytearray(place.read_bytes())
        data[-5] ^= 64
        place.write_bytes(data)
    else:
        (out / file).write_text("by hand")
    with bad_input(message):
        publish(trained_run, out)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--about={}/checkpoints-meta/checkpoint.pth", "--about=.*: must be a text file"),
        ("--about={}/missing.md", "--about=.*missing.md: must be a text file"),
        ("--license=mit\ntags: [x]", "--license=mit tags: .x.: must be a name"),
    ],
)
def test_what_cannot_go_on_a_card(
    option: str, message: str, trained_run: Path, tmp_path: Path
) -> None:
    """Nothing is written."""
    words = [
        "publish",
        f"--workdir={trained_run}",
        f"--out={tmp_path / 'out'}",
        option.format(trained_run),
    ]
    with bad_input(message):
        main(parse("publish", words))
    assert not (tmp_path / "out").exists()


def test_the_card_has_the_scores_of_the_weights(trained_run: Path, tmp_path: Path) -> None:
    """Each once, with errors; publishing again brings it up to date; a training starts there."""
    out = tmp_path / "out"
    publish(trained_run, out)
    write_card(trained_run, out, *CARD_SETTINGS)
    assert "None were measured" in (out / "README.md").read_text()
    crc32 = checkpoint.weights_crc32(checkpoint.read(out / "model.safetensors"))
    score = {"score": "FID", "value": 21.2512, "standard_error": 0.5, "num_images": 77, "key": "a"}
    score["weights_crc32"] = 1
    started = {"init": "train", "from_level": 2, "per_init": 4, "guidance": 1, "model": {"K": 3}}
    rows = [score | started | {"weights_crc32": crc32}] * 2 + [score | {"value": 3.0, "key": "b"}]
    copy = shutil.copytree(trained_run, tmp_path / "copy")
    (copy / "evaluation").mkdir()
    (copy / RESULTS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    publish(copy, out)
    write_card(copy, out, *CARD_SETTINGS)
    card = (out / "README.md").read_text()
    shown = "| FID | 21.25 +- 0.5 | 77 |  | init train, from level 2, 4 of each |"
    assert card.count(shown) == 1
    assert "| FID | 3" not in card
    assert card.startswith("---\nlicense: cc0-1.0\n")
    assert "- `model.K = 3`" in card, "a setting of its own"
    assert "optim.beta1" not in card, "a default"
    assert Image.open(out / "samples.png").size[0] > 8
    config = tiny_config(training__n_iters=1, training__init_from=str(out))
    assert train(config, tmp_path / "next") == 0


PRIVATE = "/home/jane doe/secret"


def test_of_private_paths_only_names_are_published(tmp_path: Path) -> None:
    """Whatever key holds them, also one of an earlier version: no byte of any file has them."""
    levels, images = Path(f"{tmp_path}{PRIVATE}/levels.npy"), Path(f"{tmp_path}{PRIVATE}/photos")
    save_images(images, [f"{i}.png" for i in range(12)])
    save_images(images.with_name("others"), ["0.png"])
    np.save(levels, [0, 0.5, 1, 4])
    start = tmp_path / "start"
    assert train(tiny_config(training__n_iters=1), start) == 0
    start = start.rename(levels.with_name("weights"))
    config = tiny_config(data__dataset="folder", data__path=f"{images}/", training__n_iters=2)
    config.data.held_out_path = str(images.with_name("others"))
    config.model.blur_schedule = str(levels)
    config.training.init_from = str(start)
    run = images.with_name("run")
    assert train(config, run) == 0
    contents = checkpoint.read(checkpoint.meta_path(run))
    saved = json.loads(contents["config"])
    saved["training"]["key_of_an_earlier_version"] = [f"{PRIVATE}/cache"]
    contents["config"] = json.dumps(saved)
    command = [
        f"{PRIVATE}/env/bin/python",
        "train.py",
        "--config=configs/a/b.py",
        f"--workdir={run}",
    ]
    command += ["--config.data.path", f"{images}/", f"-X{PRIVATE}/x=1"]
    contents["provenance"]["command"] = shlex.join(command)
    contents["provenance"]["place"] = {"then": f"{PRIVATE}/place"}
    checkpoint.write(checkpoint.meta_path(run), contents)
    path = publish(run, tmp_path / "out")
    write_card(run, tmp_path / "out", *CARD_SETTINGS)
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert {file.name for file in files} == {
        "model.safetensors", "process.safetensors", "config.json", "metrics.jsonl", "README.md",
        "samples.png",
    }  # fmt: skip
    for file in files:
        for part in ("jane", "doe", "secret", str(tmp_path), tmp_path.name):
            assert part.encode() not in file.read_bytes(), file
    published = checkpoint.read(path)
    shown = "python train.py --config=configs/a/b.py --workdir=run --config.data.path photos x=1"
    assert published["provenance"]["command"] == shown
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["provenance"] == published["provenance"]
    assert (config["data"]["path"], config["data"]["held_out_path"]) == ("photos", "others")
    assert config["model"]["blur_schedule"] == "levels.npy"
    assert config["training"]["init_from"] == "weights"
    sampler, _ = load_sampler(tmp_path / "out")
    assert sampler.independent([0]).shape == (1, 1, 8, 8)


def test_what_the_prior_tells_is_said(trained_run: Path) -> None:
    """How many images, how blurred, what is left of them; nothing where the prior is N(0, I)."""
    contents = checkpoint.read(checkpoint.meta_path(trained_run))
    prior = "the 9000 training images (mirror images counted), blurred by 4 pixels: 13 numbers"
    assert prior in (describe_prior(contents) or "")
    levels = torch.tensor([0, 1, 2, 2.5], dtype=torch.float64)
    assert "blurred by 2.5 pixels" in (describe_prior(contents | {"sigma_B": levels}) or "")
    assert describe_prior(contents | {"prior": {}}) is None


@pytest.mark.parametrize(
    ("name", "megabytes"),
    [
        ("mnist/pretrained", 6), ("mnist/conditional", 4),
        ("emoji/pretrained", 6), ("emoji/conditional", 11),
    ],
)  # fmt: skip
def test_the_included_weights_are_small_and_whole(name: str, megabytes: int) -> None:
    """They come with the repository, and people download that on slow lines."""
    place = ROOT / "runs" / name
    path, contents = checkpoint.read_newest(place) or (None, {})
    assert path == place / "model.safetensors"
    assert sum(file.stat().st_size for file in place.glob("*.safetensors")) < 1e6 * megabytes
    assert contents.keys() >= {"ema", "config", "prior", "step", "calibration"}
