"""Checkpoints: whole or not at all, strict about what they fit, and nothing in them is ever run."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

from model_code import build_model, build_process
from model_code.ema import EMA
from scripts.config.load import to_json
from scripts.storage import checkpoint
from scripts.storage.checkpoint import (
    TrainedModel,
    load_trained,
    meta_path,
    numbered_path,
    read,
    write,
    write_meta,
)
from tests.conftest import bad_input
from tests.golden import fill_golden, load_golden
from tests.tiny import tiny_config


def contents(config: ConfigDict, step: int = 1) -> dict[str, Any]:
    """What a training run saves, as far as inference reads it."""
    model = build_model(config)
    fill_golden(model)
    bank = build_process(config).build_prior([torch.rand(3, 1, 8, 8)])
    return {
        "step": step,
        "model": model.state_dict(),
        "ema": EMA(model, 0.9).state_dict(),
        "config": to_json(config),
        "prior": bank.state_dict(),
    }


def release_contents(model: torch.nn.Module) -> dict[str, Any]:
    """A file as the original release writes it: DataParallel's names, averages as a list, a NumPy
    learning rate.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    optimizer.param_groups[0]["lr"] = np.float64(2e-4) * np.minimum(7 / 5000, 1.0)
    return {
        "optimizer": optimizer.state_dict(),
        "model": {
            f"module.{name}": torch.full_like(weight, 9.0)
            for name, weight in model.state_dict().items()
        },
        "ema": {
            "decay": 0.999,
            "num_updates": 7,
            "shadow_params": [weight.detach().clone() for weight in model.parameters()],
        },
        "step": 7,
    }


def test_written_and_read(tmp_path: Path) -> None:
    config = tiny_config()
    write(numbered_path(tmp_path, 2), contents(config, step=5))
    trained = load_trained(config, tmp_path, 2)
    expected = build_model(config)
    fill_golden(expected)
    for one, other in zip(trained.model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other)
    assert (trained.step, trained.model.training) == (5, False)
    assert trained.prior is not None
    assert len(trained.prior) == 3


def test_zero_is_the_newest(tmp_path: Path) -> None:
    config = tiny_config()
    write(numbered_path(tmp_path, 2), contents(config, step=2))
    write(numbered_path(tmp_path, 10), contents(config, step=10))
    assert load_trained(config, tmp_path, 0).step == 10, (
        "the highest number, not the last in the alphabet"
    )
    write_meta(tmp_path, contents(config, step=11))
    assert load_trained(config, tmp_path, 0).step == 11


def test_the_previous_one_is_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write_meta(tmp_path, contents(tiny_config(), step))
    assert (
        read(meta_path(tmp_path))["step"],
        read(checkpoint.previous_path(tmp_path))["step"],
    ) == (3, 2)
    assert sorted(path.name for path in meta_path(tmp_path).parent.iterdir()) == [
        "checkpoint.pth",
        "checkpoint_previous.pth",
    ]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed")]
)
def test_a_failed_write_leaves_the_old_one(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_meta(tmp_path, contents(tiny_config(), 1))

    def half_written(data: object, path: Path) -> None:
        path.write_bytes(b"PK half")
        raise error

    monkeypatch.setattr(torch, "save", half_written)
    with bad_input("could not be written"):
        write_meta(tmp_path, contents(tiny_config(), 2))
    assert [path.name for path in meta_path(tmp_path).parent.iterdir()] == ["checkpoint.pth"]
    assert read(meta_path(tmp_path))["step"] == 1


@pytest.mark.parametrize("name", ["gray28", "rgb16"])
def test_the_releases_own_files(name: str, tmp_path: Path) -> None:
    """Averages, a list in registration order, become the weights; the U-Net's golden output comes
    out of them.
    """
    golden = load_golden(name)
    path = meta_path(tmp_path)
    path.parent.mkdir()
    torch.save(release_contents(golden.model), path)
    s = golden.settings
    config = tiny_config(
        data__image_size=s["image_size"],
        data__num_channels=s["num_channels"],
        **{f"model__{key}": s[key] for key in ("model_channels", "num_res_blocks")},
        **{f"model__{key}": tuple(s[key]) for key in ("channel_mult", "attention_levels")},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load_trained(config, tmp_path, 0).model
    with torch.no_grad():
        torch.testing.assert_close(
            model(golden["u0"], golden["k"]), golden["unet_out"], atol=1e-4, rtol=1e-4
        )
    assert load_trained(config, tmp_path, 0).prior is None


def test_numpy_1_names_of_the_releases_learning_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files from the release's time name NumPy's scalars by a module that was renamed later."""
    path = tmp_path / "old.pth"
    torch.save(release_contents(torch.nn.Linear(1, 1)), path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    assert b"numpy._core.multiarray" in data
    path.write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read(path)["optimizer"]["param_groups"][0]["lr"] == pytest.approx(2e-4 * 7 / 5000)


def test_missing(tmp_path: Path) -> None:
    with bad_input("there is no checkpoint in it"):
        load_trained(tiny_config(), tmp_path, 0)
    write(numbered_path(tmp_path, 3), contents(tiny_config()))
    with bad_input(r"--checkpoint=4: .* there are 3$"):
        load_trained(tiny_config(), tmp_path, 4)


@pytest.mark.parametrize("kind", ["truncated", "bit flipped", "empty", "text"])
def test_damaged_files_are_one_clear_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"{kind}.pth"
    write(path, contents(tiny_config()))
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 0x10]) + whole[middle + 1 :]
    damaged = {
        "truncated": whole[:middle],
        "bit flipped": flipped,
        "empty": b"",
        "text": b"not a checkpoint at all",
    }
    path.write_bytes(damaged[kind])
    with bad_input(rf"{kind}\.pth: damaged, or not a checkpoint"):
        read(path)


def test_foreign_and_incomplete_files(tmp_path: Path) -> None:
    for file in (
        {"state_dict": {"weight": torch.ones(1)}},
        torch.ones(1),
        {"format": checkpoint.FORMAT, "step": 1},
    ):
        torch.save(file, tmp_path / "a.pth")
        with bad_input(r"a\.pth: not a checkpoint of this program"):
            read(tmp_path / "a.pth")


def test_checkpoints_that_cannot_be_resumed(tmp_path: Path) -> None:
    """The release's, and those without what only training needs."""
    write_meta(
        tmp_path,
        {name: value for name, value in contents(tiny_config()).items() if name != "model"},
    )
    with bad_input("but not trained further, as it has no data, model, optimizer, scaler"):
        checkpoint.read_to_resume(tmp_path)
    torch.save(release_contents(torch.nn.Linear(1, 1)), meta_path(tmp_path))
    with bad_input(
        "can be sampled from, but not trained further, as it has no data, prior, scaler",
    ):
        checkpoint.read_to_resume(tmp_path)


def test_weights_that_are_not_finite_are_passed_over(tmp_path: Path) -> None:
    config = tiny_config()
    poisoned = contents(config, 2)
    name = next(iter(poisoned["ema"]["shadow"]))
    poisoned["ema"]["shadow"][name].view(-1)[0] = float("nan")
    for saved in (contents(config, 1), poisoned):
        write_meta(tmp_path, saved)
    with pytest.warns(
        UserWarning, match=rf"checkpoint\.pth: ema\.shadow\.{name} holds NaN or infinity"
    ):
        assert load_trained(config, tmp_path, 0).step == 1


def test_another_configuration_is_named_by_key(tmp_path: Path) -> None:
    write_meta(tmp_path, contents(tiny_config()))
    with bad_input(r"config\.model\.num_res_blocks was 1, now 2"):
        load_trained(tiny_config(model__num_res_blocks=2), tmp_path, 0)
    free = {
        "model__dropout": 0.5,
        "model__delta_over_sigma": 1.0,
        "model__sampling_noise": "spectral",
        "optim__lr": 1.0,
    }
    load_trained(
        tiny_config(**free, data__uniform_dequantization=True, data__random_flip=False), tmp_path, 0
    )


def errors_of(trained: TrainedModel) -> list[float]:
    """What the newest calibration has."""
    calibration = trained.calibration()
    assert calibration is not None
    return calibration["errors"].tolist()


def test_calibration_precision_and_dequantization(tmp_path: Path) -> None:
    """What was measured later, beside the checkpoint, goes before what training measured, if it was
    of the same weights.
    """
    config = tiny_config()
    write_meta(tmp_path, contents(config))
    trained = load_trained(config, tmp_path, 0)
    assert (trained.calibration(), trained.dequantized) == (None, False)
    trained.write_calibration({"errors": torch.ones(2)})
    assert errors_of(load_trained(config, tmp_path, 0)) == [1, 1]
    later = contents(config)
    for weight in later["ema"]["shadow"].values():
        weight += 0.25
    write_meta(tmp_path, later | {"step": 9})
    stale = r"checkpoint\.calibration\.pth: measured with the weights of step \d+, where .* step 9"
    with bad_input(f"{stale}; run python"):
        load_trained(config, tmp_path, 0).calibration()
    kept = {"calibration": {"errors": torch.zeros(2)}, "precision": "bfloat16"}
    write_meta(tmp_path, later | kept)
    assert errors_of(load_trained(config, tmp_path, 0)) == [0, 0]
    write_meta(tmp_path, contents(tiny_config(data__uniform_dequantization=True)) | kept)
    trained = load_trained(config, tmp_path, 0)
    assert trained.dequantized
    assert errors_of(trained) == [1, 1]


def test_calibrations_of_earlier_versions(tmp_path: Path) -> None:
    """Their key in a checkpoint was "noise", and CHECKPOINT.noise.pth was beside it."""
    config = tiny_config()
    write_meta(tmp_path, contents(config) | {"noise": {"errors": torch.zeros(2)}})
    trained = load_trained(config, tmp_path, 0)
    assert errors_of(trained) == [0, 0]
    beside = {"weights_crc32": trained.weights_crc32, "measured": {"errors": torch.ones(2)}}
    torch.save(beside, trained.path.with_suffix(".noise.pth"))
    assert errors_of(trained) == [1, 1]


def test_a_checkpoint_of_an_earlier_version(tmp_path: Path) -> None:
    """Keys that its configuration lacks had the behaviour of today's defaults."""
    older = contents(tiny_config())
    saved = json.loads(older["config"])
    del saved["model"]["process"]
    write_meta(tmp_path, older | {"config": json.dumps(saved)})
    assert load_trained(tiny_config(), tmp_path, 0).step == 1


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("data__num_channels", 3, r"input_blocks\.0\.0\.weight: .*\[32, 3, 3, 3\]"),
        ("model__num_res_blocks", 2, r"Missing key"),
    ],
)
def test_another_architecture_without_a_configuration_is_named_by_parameter(
    key: str, value: int, reason: str, tmp_path: Path
) -> None:
    """The release's files have no configuration to compare."""
    meta_path(tmp_path).parent.mkdir()
    torch.save(release_contents(build_model(tiny_config())), meta_path(tmp_path))
    with bad_input(rf"another architecture .*{reason}"):
        load_trained(tiny_config(**{key: value}), tmp_path, 0)
