"""What a run would cost is counted right, and what saves memory or time does not change the
numbers.
"""

from pathlib import Path

import pytest
import torch
from torch import nn

from scripts.config.paths import ROOT
from scripts.config.resolve import resolve
from scripts.training.plan import Work, plan
from tests.conftest import command
from tests.images import random_images
from tests.tiny import tiny_config
from tests.training.runs import differing, gradients_of, trainer_of


def test_plan_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's CIFAR-10 model: 61.06M parameters, 19.15 GFLOP an image, batch 128, K = 200."""
    work = Work(61_060_000, 19_150_000_000, 3 * 19_150_000_000)
    monkeypatch.setattr(Work, "of", lambda config: work)
    training = {"training__batch_size": 128, "training__n_iters": 1_300_001}
    config = tiny_config(**training, model__K=200, optim__automatic_mp=True)
    rows = [line.split() for line in plan(config, 1000, 0.4).splitlines()[-3:]]
    milliseconds = {row[0]: float(row[2]) for row in rows}
    of_one = 1e3 * work.training * 128 / 4e14
    waiting_for_gradients = 1e3 * 2 * 63 / 64 * 4 * 61.06e6 / 50e9
    expected = {"1": of_one, "8": of_one / 8, "64": waiting_for_gradients}
    assert milliseconds == pytest.approx(expected, abs=0.05)
    hours = 1_300_001 * work.training * 128 / 4e14 / 3600
    samples = 50_000 * 200 * work.forward / 4e14 / 3600
    assert f"{hours:.4g}" in rows[0]
    assert f"{samples:.4g}" == rows[0][-1]


def test_recomputing_costs_one_more_forward_pass() -> None:
    kept, recomputed = (
        Work.of(resolve(tiny_config(training__recompute=recompute))) for recompute in (False, True)
    )
    assert (kept.training, recomputed.training) == (3 * kept.forward, 4 * kept.forward)


def test_plan_needs_neither_data_nor_directory_and_leaves_nothing(tmp_path: Path) -> None:
    config = ROOT / "configs/mnist/small_mnist.py"
    options = ("--config", config, "--plan", "--config.data.path=nowhere")
    done = command(ROOT / "train.py", *options, cwd=tmp_path)
    assert "3.70M parameters" in done.stdout
    assert "67 TFLOP/s a device" in done.stdout, "an H100 in float32"
    assert [line.split()[0] for line in done.stdout.splitlines()[-3:]] == ["1", "8", "64"]
    assert not list(tmp_path.iterdir())


def test_recomputing_gives_the_same_numbers_bit_for_bit() -> None:
    """Dropout too, whose masks are drawn twice."""
    gradients: list[list[torch.Tensor]] = []
    for recompute in (False, True):
        trainer = trainer_of(tiny_config(model__dropout=0.3, training__recompute=recompute))
        nn.init.normal_(trainer.model.get_parameter("out.2.weight"))  # 0 would hide the others
        of_step = gradients_of(trainer)
        trainer.train_step(random_images(4, 1, 8, 8))
        gradients.append(of_step)
    assert len(gradients[0]) > 20
    assert not differing(gradients[0], gradients[1])


def test_compiled_losses_and_names_are_those_of_the_network_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the compiler's front end only: generating code takes minutes here."""
    modes = []
    compile_module = nn.Module.compile

    def front_end(self: nn.Module, *, mode: str, dynamic: bool) -> None:
        modes.append(mode)
        compile_module(self, backend="eager", dynamic=dynamic)

    monkeypatch.setattr(nn.Module, "compile", front_end)
    images = random_images(3, 4, 1, 8, 8)
    trainers = [trainer_of(tiny_config(compile=mode)) for mode in ("none", "reduce-overhead")]
    losses = [[trainer.train_step(batch).losses for batch in images] for trainer in trainers]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
    assert modes == ["reduce-overhead"]
    assert trainers[1].state_dict()["model"].keys() == trainers[0].state_dict()["model"].keys()
