"""Fine-tuning: from whose weights a new run starts, on what, along which levels, and what its
records say.
"""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from model_code import build_model, build_process
from model_code.gaussian import GaussianProcess
from scripts.config.resolve import resolve
from scripts.sampling.sampler import load_sampler
from scripts.storage import checkpoint
from scripts.storage.checkpoint import meta_path, read, weights_crc32
from scripts.tools.publish import publish
from scripts.training.loop import train
from scripts.training.step import Trainer
from tests.conftest import bad_input
from tests.storage.test_checkpoint import release_contents
from tests.tiny import tiny_config
from tests.training.runs import TinyRun, differing, finish, metrics_with


def first_states(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A list that will begin with what training starts with, before its first step."""
    states: list[dict[str, Any]] = []
    train_step = Trainer.train_step

    def observed(trainer: Trainer, images: torch.Tensor) -> object:
        states.append(copy.deepcopy(trainer.state_dict()))
        return train_step(trainer, images)

    monkeypatch.setattr(Trainer, "train_step", observed)
    return states


@pytest.mark.parametrize("kind", ["run", "file", "published", "release"])
def test_weights_and_averages_start_from_the_averages(
    kind: str, trained_run: Path, tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all kinds of checkpoints, at step 0, on another data set; the records say which weights
    those were.
    """
    expected, start = read(meta_path(trained_run))["ema"]["shadow"], trained_run
    if kind == "file":
        start = meta_path(trained_run)
    elif kind == "published":
        publish(trained_run, start := tmp_path / "published")
    elif kind == "release":
        model = build_model(tiny_config())
        expected = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        torch.save(release_contents(model), start := tmp_path / "release.pth")
    workdir, states = tiny_run.workdir, first_states(monkeypatch)
    tiny_run.finish(training__init_from=str(start), training__n_iters=1)
    state = states[0]
    assert not state["optimizer"]["state"]
    assert (state["step"], state["ema"]["num_updates"]) == (0, 0)
    assert not differing(state["model"], expected)
    assert not differing(state["ema"]["shadow"], expected)
    step = 7 if kind == "release" else 6
    record = json.loads((workdir / "config.json").read_text())["provenance"]["init_from"]
    checksum = weights_crc32({"ema": {"shadow": expected}})
    assert (record["step"], record["weights_crc32"]) == (step, checksum)
    assert read(meta_path(workdir))["provenance"]["init_from"] == record
    (event,) = metrics_with("event", workdir)
    assert (event["event"], event["init_from"]) == ("started", record)
    changed = set() if kind == "release" else {"data.dataset", "data.path"}
    assert event["changed_config"].keys() == changed, "the release's files have no configuration"


def test_a_run_goes_on_without_its_source(
    trained_run: Path, tiny_run: TinyRun, tmp_path: Path
) -> None:
    """Interrupted and resumed it ends bit for bit as undisturbed, though the source is gone, and
    its record stays.
    """
    start = shutil.copytree(trained_run, tmp_path / "start")
    undisturbed = TinyRun(tiny_run.array, tmp_path / "undisturbed")
    record = undisturbed.finish(training__init_from=str(start))["provenance"]["init_from"]
    tiny_run.interrupt(3, training__init_from=str(start))
    shutil.rmtree(start)
    end = tiny_run.finish(training__init_from=str(start))
    assert not differing(tiny_run.state(), undisturbed.state())
    assert end["provenance"]["init_from"] == record
    with bad_input("did not start from that; choose another --workdir"):
        tiny_run.train(training__init_from=str(trained_run))


def test_levels_noise_blur_and_size_may_be_others(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {"model__K": 5, "model__sigma": 0.05, "model__blur_sigma_max": 2.0}
    training = {"training__init_from": str(trained_run), "training__n_iters": 1}
    finish(tiny_config(**training, **model, data__image_size=12), tmp_path)
    printed = capsys.readouterr().out
    assert "weights of checkpoint.pth at step 6, from" in printed
    assert "config.model.K was 3, now 5" in printed
    assert "config.model.sigma was 0.01" in printed
    assert "config.training" not in printed


@pytest.mark.parametrize(
    ("start", "changes", "message"),
    [
        ("run", {"data__num_channels": 3}, r"config\.data\.num_channels was 1, now 3$"),
        (  # shapes are the same
            "run",
            {"model__num_heads": 2, "model__K": 5},
            r"checkpoint\.pth was made with .* config\.model\.num_heads was 1, now 2$",
        ),
        (
            "release.pth",
            {"data__num_channels": 3},
            r"release\.pth holds another architecture .* input_blocks\.0\.0\.weight",
        ),
        ("nowhere", {}, r"init_from = .*nowhere': must be a checkpoint, or a run directory with"),
        ("", {}, r"config\.training\.init_from = .*must be a checkpoint, or a run directory"),
        ("text.pth", {}, r"text\.pth: damaged, or not a checkpoint"),
    ],
)
def test_what_does_not_fit_is_named(
    start: str, changes: dict[str, Any], message: str, trained_run: Path, tmp_path: Path
) -> None:
    """Before anything is written, by key, or of the release's by parameter; K may be another."""
    (tmp_path / "text.pth").write_text("no checkpoint")
    torch.save(release_contents(build_model(tiny_config())), tmp_path / "release.pth")
    place = trained_run if start == "run" else tmp_path / start
    with bad_input(message):
        train(tiny_config(training__init_from=str(place), **changes), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_fine_tuning_to_fewer_levels(
    trained_run: Path, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network sees the chain's levels only, under the numbers that they had, and a sample takes
    a call for each.
    """
    levels: set[int] = set()
    train_step = Trainer.train_step

    def observed(trainer: Trainer, images: torch.Tensor) -> object:
        result = train_step(trainer, images)
        levels.update(result.levels.tolist())
        return result

    monkeypatch.setattr(Trainer, "train_step", observed)
    training = {"training__init_from": str(trained_run), "training__n_iters": 8}
    tiny_run.finish(model__K=6, model__chain="6,4,3,0", **training)
    assert levels == {3, 4, 6}
    sampler, trained = load_sampler(tiny_run.workdir)
    calls: list[int] = []
    trained.model.register_forward_hook(
        lambda model, inputs, output: calls.extend(inputs[1].tolist())
    )
    sampler.independent([0])
    assert (sampler.label, calls) == ("calibrated", [6, 4, 3])
    with bad_input(r"config\.model\.chain was '6,4,3,0', now ''"):
        checkpoint.load_trained(tiny_config(model__K=6), tiny_run.workdir, 0)


@pytest.mark.parametrize("name", ["heat", "blurring_diffusion"])
def test_the_chain_of_a_process(name: str) -> None:
    """Even levels as --steps has them; the target of heat is the image at the level that is visited
    next.
    """
    all_levels, process = (
        build_process(tiny_config(model__process=name, model__K=100, model__chain=chain))
        for chain in ("", "25")
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
    ("chain", "protocol", "message"),
    [
        ("4", "paper", "N from 1 to 3, or all levels from 3 to 0"),
        ("2:bound", "paper", "N from 1 to 3"),
        ("2,0", "paper", "go down from 3 to 0"),
        ("2", "released", "empty with"),
    ],
)
def test_other_chains_are_refused(chain: str, protocol: str, message: str) -> None:
    config = tiny_config(model__chain=chain, model__protocol=protocol)
    with bad_input(rf"config\.model\.chain = '{chain}': must .*{message}"):
        resolve(config)
