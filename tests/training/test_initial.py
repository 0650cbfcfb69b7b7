"""Fine-tuning: from whose weights a new run starts, on what, along which levels, and what its
records say.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from model_code import build_model, build_process
from model_code.gaussian import GaussianProcess
from scripts.errors import UserError
from scripts.sampling.sampler import load_sampler
from scripts.storage import checkpoint
from scripts.storage.checkpoint import meta_path, read, weights_crc32
from scripts.storage.files import read_json_lines
from scripts.tools.publish import publish
from scripts.training.loop import train
from scripts.training.step import Trainer
from tests.storage.test_checkpoint import release_contents
from tests.tiny import tiny_config
from tests.training.runs import array_config, before_step, differing, final_state


@pytest.fixture
def source(trained_run: Path) -> Path:
    """A finished run."""
    return trained_run


def averages(path: Path) -> dict[str, torch.Tensor]:
    return read(path)["ema"]["shadow"]


def first_state(config: Any, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What training starts with, before its first step."""
    found: list[dict[str, Any]] = []
    train_step = Trainer.train_step

    def observed(trainer: Trainer, images: torch.Tensor) -> object:
        if not found:
            state = trainer.state_dict()
            copies = {name: weight.clone() for name, weight in state["model"].items()}
            shadow = {name: weight.clone() for name, weight in state["ema"]["shadow"].items()}
            found.append(state | {"model": copies, "ema": state["ema"] | {"shadow": shadow}})
            assert not trainer.optimizer.state
        return train_step(trainer, images)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", observed)
        assert train(config, workdir) == 0
    return found[0]


@pytest.mark.parametrize("kind", ["run", "file", "published", "release"])
def test_weights_and_averages_start_from_the_averages(
    kind: str, source: Path, tiny_array: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all kinds of checkpoints, at step 0, on another data set; the records say which weights
    those were.
    """
    expected, start = averages(meta_path(source)), source
    if kind == "file":
        start = meta_path(source)
    elif kind == "published":
        publish(source, start := tmp_path / "published")
    elif kind == "release":
        model = build_model(tiny_config())
        expected = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        torch.save(release_contents(model), start := tmp_path / "release.pth")
    workdir = tmp_path / "run"
    config = array_config(
        tiny_array, training__init_from=str(start), training__n_iters=1, optim__lr=1e-9
    )
    state = first_state(config, workdir, monkeypatch)
    assert (state["step"], state["ema"]["num_updates"]) == (0, 0)
    assert not differing(state["model"], expected)
    assert not differing(state["ema"]["shadow"], expected)
    step = 7 if kind == "release" else 6
    record = json.loads((workdir / "config.json").read_text())["provenance"]["init_from"]
    assert (record["step"], record["weights_crc32"]) == (
        step,
        weights_crc32({"ema": {"shadow": expected}}),
    )
    assert read(meta_path(workdir))["provenance"]["init_from"] == record
    (event,) = [
        row for row in read_json_lines(workdir / "metrics.jsonl") if row.get("event") == "started"
    ]
    assert event["init_from"] == record
    changed = set() if kind == "release" else {"data.dataset", "data.path"}
    assert event["changed_config"].keys() == changed, "the release's files have no configuration"


def test_a_run_goes_on_without_its_source(
    source: Path, tiny_array: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted and resumed it ends bit for bit as undisturbed, though the source is gone, and
    its record stays.
    """
    start = shutil.copytree(source, tmp_path / "start")
    config = array_config(
        tiny_array, training__init_from=str(start), training__snapshot_freq_for_preemption=2
    )
    assert train(config, tmp_path / "undisturbed") == 0

    def fail() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        before_step(patch, 3, fail)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run")
    shutil.rmtree(start)
    assert train(config, tmp_path / "run") == 0
    assert not differing(final_state(tmp_path / "run"), final_state(tmp_path / "undisturbed"))
    records = [
        read(meta_path(tmp_path / name))["provenance"]["init_from"]
        for name in ("run", "undisturbed")
    ]
    assert records[0] == records[1]
    with pytest.raises(UserError, match="did not start from that; choose another --workdir"):
        train(array_config(tiny_array, training__init_from=str(source)), tmp_path / "run")


def test_levels_noise_blur_and_size_may_be_others(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {
        "model__K": 5,
        "model__sigma": 0.05,
        "model__blur_sigma_max": 2.0,
        "data__image_size": 12,
    }
    config = tiny_config(training__init_from=str(source), training__n_iters=1, **changes)
    assert train(config, tmp_path) == 0
    printed = capsys.readouterr().out
    for line in (
        "weights of checkpoint.pth at step 6, from",
        "config.model.K was 3, now 5",
        "config.model.sigma was 0.01",
    ):
        assert line in printed
    assert "config.training" not in printed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__num_channels": 3}, r"config\.data\.num_channels was 1, now 3$"),
        (
            {"model__num_heads": 2, "model__K": 5},
            r"checkpoint\.pth was made with .* config\.model\.num_heads was 1, now 2$",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    changes: dict[str, Any], message: str, source: Path, tmp_path: Path
) -> None:
    """Before anything is written, by key; another number of heads, too, though shapes are the same.
    K may be another.
    """
    with pytest.raises(UserError, match=message) as error:
        train(tiny_config(training__init_from=str(source), **changes), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_what_does_not_fit_of_the_releases_is_named_by_parameter(tmp_path: Path) -> None:
    torch.save(release_contents(build_model(tiny_config())), tmp_path / "release.pth")
    config = tiny_config(training__init_from=str(tmp_path / "release.pth"), data__num_channels=3)
    with pytest.raises(
        UserError, match=r"release\.pth holds another architecture .* input_blocks\.0\.0\.weight"
    ):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nothing_to_start_from(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("no checkpoint")
    for name, message in (
        (
            "nowhere",
            "config.training.init_from = .*nowhere': must be a checkpoint, or a run directory with "
            "one",
        ),
        ("", "config.training.init_from = .*must be a checkpoint, or a run directory"),
        ("text.pth", r"text\.pth: damaged, or not a checkpoint"),
    ):
        with pytest.raises(UserError, match=message):
            train(tiny_config(training__init_from=str(tmp_path / name)), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_fine_tuning_to_fewer_levels(
    source: Path, tiny_array: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network sees the chain's levels only, under the numbers that they had, and a sample takes
    a call for each.
    """
    chain = "6,4,3,0"
    levels: set[int] = set()
    train_step = Trainer.train_step

    def observed(trainer: Trainer, images: torch.Tensor) -> object:
        result = train_step(trainer, images)
        levels.update(result.levels.tolist())
        return result

    monkeypatch.setattr(Trainer, "train_step", observed)
    config = array_config(
        tiny_array,
        model__K=6,
        model__chain=chain,
        training__init_from=str(source),
        training__n_iters=8,
    )
    assert train(config, tmp_path) == 0
    assert levels == {3, 4, 6}
    sampler, trained = load_sampler(None, tmp_path, 0)
    calls: list[int] = []
    trained.model.register_forward_hook(
        lambda model, inputs, output: calls.extend(inputs[1].tolist())
    )
    sampler.independent([0])
    assert (sampler.label, calls) == ("calibrated", [6, 4, 3])
    with pytest.raises(UserError, match=r"config\.model\.chain was '6,4,3,0', now ''"):
        checkpoint.load_trained(array_config(tiny_array, model__K=6), tmp_path, 0)


@pytest.mark.parametrize("name", ["heat", "blurring_diffusion"])
def test_the_chain_of_a_process(name: str) -> None:
    """Even levels as --steps has them; the target of heat is the image at the level that is visited
    next.
    """
    config = tiny_config(model__process=name, model__K=100, model__chain="25")
    process, all_levels = (
        build_process(config),
        build_process(tiny_config(model__process=name, model__K=100)),
    )
    assert process.chain == tuple(range(100, -1, -4))
    assert process.training_levels == list(range(4, 101, 4))
    assert "25 of them visited" in str(process)
    u0, k, eps = torch.rand(2, 1, 8, 8), torch.tensor([100, 4]), torch.randn(2, 1, 8, 8)
    state, target = process.corrupt(u0, k, eps)
    assert torch.equal(state, all_levels.corrupt(u0, k, eps)[0])
    if name == "heat":
        assert isinstance(all_levels, GaussianProcess)
        assert torch.equal(target, all_levels.blur(u0, torch.tensor([96, 0])))
        assert process.reverse_kernel(0.0125).chain == process.chain


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"model__chain": "4"},
            r"config\.model\.chain = '4': must be N from 1 to 3, or all levels from 3 to 0",
        ),
        ({"model__chain": "2:bound"}, r"config\.model\.chain = '2:bound': must be N from 1 to 3"),
        ({"model__chain": "2,0"}, r"config\.model\.chain = '2,0': must go down from 3 to 0"),
        (
            {"model__chain": "2", "model__protocol": "released"},
            r"config\.model\.chain = '2': must be empty with",
        ),
    ],
)
def test_other_chains_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        train(tiny_config(**settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()
