"""Checkpoints: whole or not at all, strict about what they fit, and nothing in them is ever run."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

from model_code import build_blur, build_model
from model_code.ema import EMA
from model_code.prior import PriorBank
from scripts import checkpoint
from scripts.checkpoint import (
    load_for_inference,
    load_trained,
    meta_path,
    numbered_path,
    previous_path,
    read,
    write,
    write_meta,
)
from scripts.config import to_json
from scripts.errors import UserError
from tests.conftest import tiny_config
from tests.golden import fill_golden, load_golden


def contents(config: ConfigDict, step: int = 1) -> dict[str, Any]:
    """What a training run saves, as far as inference reads it."""
    model = build_model(config)
    fill_golden(model)
    bank = PriorBank.from_images(torch.rand(3, 1, 8, 8), build_blur(config))
    return {
        "step": step,
        "model": model.state_dict(),
        "ema": EMA(model, 0.9).state_dict(),
        "config": to_json(config),
        "prior": bank.state_dict(),
    }


def release_contents(model: torch.nn.Module) -> dict[str, Any]:
    """A file as the original release writes it: DataParallel's names, averages as a list, a NumPy learning rate."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    optimizer.param_groups[0]["lr"] = np.float64(2e-4) * np.minimum(7 / 5000, 1.0)
    return {
        "optimizer": optimizer.state_dict(),
        "model": {f"module.{name}": torch.full_like(weight, 9.0) for name, weight in model.state_dict().items()},
        "ema": {
            "decay": 0.999,
            "num_updates": 7,
            "shadow_params": [weight.detach().clone() for weight in model.parameters()],
        },
        "step": 7,
    }


class RunsCode:
    """A pickle that writes a file when it is loaded by a careless reader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "code was run")


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
    assert load_trained(config, tmp_path, 0).step == 10, "the highest number, not the last in the alphabet"
    write_meta(tmp_path, contents(config, step=11))
    assert load_trained(config, tmp_path, 0).step == 11


def test_the_previous_one_is_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write_meta(tmp_path, contents(tiny_config(), step))
    assert (read(meta_path(tmp_path))["step"], read(previous_path(tmp_path))["step"]) == (3, 2)
    assert sorted(path.name for path in meta_path(tmp_path).parent.iterdir()) == ["checkpoint.pth", "checkpoint_previous.pth"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed")])
def test_a_failed_write_leaves_the_old_one(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_meta(tmp_path, contents(tiny_config(), 1))

    def half_written(data: object, path: Path) -> None:
        path.write_bytes(b"PK half")
        raise error

    monkeypatch.setattr(torch, "save", half_written)
    with pytest.raises(UserError, match="could not be written"):
        write_meta(tmp_path, contents(tiny_config(), 2))
    assert [path.name for path in meta_path(tmp_path).parent.iterdir()] == ["checkpoint.pth"]
    assert read(meta_path(tmp_path))["step"] == 1


@pytest.mark.parametrize("name", ["gray28", "rgb16"])
def test_the_releases_own_files(name: str, tmp_path: Path) -> None:
    """Averages, a list in registration order, become the weights; the U-Net's golden output comes out of them."""
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
        model = load_for_inference(config, tmp_path, 0)
    with torch.no_grad():
        torch.testing.assert_close(model(golden["u0"], golden["k"]), golden["unet_out"], atol=1e-4, rtol=1e-4)
    assert load_trained(config, tmp_path, 0).prior is None


def test_numpy_1_names_of_the_releases_learning_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files from the release's time name NumPy's scalars by a module that has since been renamed."""
    path = tmp_path / "old.pth"
    torch.save(release_contents(torch.nn.Linear(1, 1)), path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    assert b"numpy._core.multiarray" in data
    path.write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read(path)["optimizer"]["param_groups"][0]["lr"] == pytest.approx(2e-4 * 7 / 5000)


def test_a_release_file_cannot_be_resumed(tmp_path: Path) -> None:
    meta_path(tmp_path).parent.mkdir()
    torch.save(release_contents(torch.nn.Linear(1, 1)), meta_path(tmp_path))
    with pytest.raises(UserError, match="can be sampled from, but not trained further"):
        checkpoint.read_to_resume(tmp_path)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no checkpoint in it"):
        load_trained(tiny_config(), tmp_path, 0)
    write(numbered_path(tmp_path, 3), contents(tiny_config()))
    with pytest.raises(UserError, match=r"--checkpoint=4: .* there are 3$"):
        load_trained(tiny_config(), tmp_path, 4)


def damaged_files(tmp_path: Path) -> dict[str, Path]:
    good = tmp_path / "good.pth"
    write(good, contents(tiny_config()))
    data = good.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0x10
    files = {
        "truncated": data[: len(data) // 2],
        "bit flipped": bytes(flipped),
        "empty": b"",
        "text": b"not a checkpoint at all\n",
    }
    paths = {name: tmp_path / f"{name}.pth" for name in files}
    for name, path in paths.items():
        path.write_bytes(files[name])
    paths["foreign"] = tmp_path / "foreign.pth"
    torch.save({"state_dict": {"weight": torch.ones(1)}}, paths["foreign"])
    paths["tensor"] = tmp_path / "tensor.pth"
    torch.save(torch.ones(1), paths["tensor"])
    return paths


@pytest.mark.parametrize("kind", ["truncated", "bit flipped", "empty", "text", "foreign", "tensor"])
def test_unreadable_files_are_one_clear_line(kind: str, tmp_path: Path) -> None:
    path = damaged_files(tmp_path)[kind]
    with pytest.raises(UserError, match=kind) as error:  # the file's name is in the message
        read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_not_run(zipped: bool, tmp_path: Path) -> None:
    trap, path = tmp_path / "trap", tmp_path / "malicious.pth"
    if zipped:
        torch.save({"format": checkpoint.FORMAT, "step": RunsCode(trap)}, path)
    else:
        path.write_bytes(pickle.dumps({"format": checkpoint.FORMAT, "step": RunsCode(trap)}))
    with pytest.raises(UserError, match=r"malicious\.pth"):
        read(path)
    assert not trap.exists()


def test_unreadable_newest_falls_back_with_a_warning(tmp_path: Path) -> None:
    config = tiny_config()
    for step in (1, 2):
        write_meta(tmp_path, contents(config, step))
    meta_path(tmp_path).write_bytes(b"")
    with pytest.warns(UserWarning, match="using the one before it"):
        assert load_trained(config, tmp_path, 0).step == 1
    assert meta_path(tmp_path).exists(), "reading for inference moves nothing"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_poisoned_weights_are_passed_over(value: float, tmp_path: Path) -> None:
    """A model with one bad number gives nothing but bad numbers, and says no word about it."""
    config = tiny_config()
    poisoned = contents(config, 2)
    name = next(iter(poisoned["ema"]["shadow"]))
    poisoned["ema"]["shadow"][name].view(-1)[0] = value
    for saved in (contents(config, 1), poisoned):
        write_meta(tmp_path, saved)
    with pytest.warns(UserWarning, match=rf"checkpoint\.pth: ema\.shadow\.{name} holds NaN or infinity"):
        assert load_trained(config, tmp_path, 0).step == 1


def test_none_readable(tmp_path: Path) -> None:
    meta_path(tmp_path).parent.mkdir()
    meta_path(tmp_path).write_bytes(b"junk")
    with pytest.raises(UserError, match="damaged"):
        checkpoint.read_to_resume(tmp_path)
    assert meta_path(tmp_path).read_bytes() == b"junk"


def test_another_configuration_is_named_by_key(tmp_path: Path) -> None:
    write_meta(tmp_path, contents(tiny_config()))
    with pytest.raises(UserError, match=r"config\.model\.num_res_blocks was 1, now 2"):
        load_trained(tiny_config(model__num_res_blocks=2), tmp_path, 0)
    load_trained(tiny_config(model__dropout=0.5, model__delta_over_sigma=1.0, optim__lr=1.0), tmp_path, 0)


def test_another_architecture_without_a_configuration_is_named_by_parameter(tmp_path: Path) -> None:
    """The release's files have no configuration to compare."""
    meta_path(tmp_path).parent.mkdir()
    torch.save(release_contents(build_model(tiny_config(data__num_channels=3))), meta_path(tmp_path))
    with pytest.raises(UserError, match=r"input_blocks\.0\.0\.weight is \(32, 3, 3, 3\) in the checkpoint, \(32, 1, 3, 3\)"):
        load_trained(tiny_config(), tmp_path, 0)
    with pytest.raises(UserError, match=r"has \d+ parameters where this configuration's model has \d+"):
        load_trained(tiny_config(model__num_res_blocks=2), tmp_path, 0)
