"""What a run would cost is counted right, and what saves memory or time does not change the numbers."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict
from torch import nn

from configs.cifar10 import default_cifar10_configs
from model_code import build_model
from scripts.config import ROOT
from scripts.device import Precision
from scripts.errors import UserError
from scripts.training.cost import Activations, Cost, _activation_bytes
from scripts.training.plan import plan
from scripts.training.step import Trainer
from tests.conftest import tiny_config

CPU = torch.device("cpu")
NETWORK = {"model__channel_mult": (1, 2), "model__attention_levels": (1,), "model__dropout": 0.3}


def saved_bytes(config: ConfigDict, images: int) -> int:
    """What autograd keeps of a forward pass that is really run."""
    model, kept = build_model(config), {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    u, k = torch.rand(images, 1, 8, 8), torch.ones(images, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), Precision.of(config, CPU).autocast():
        change = model(u, k)
    for weight in model.parameters():
        kept.pop(weight.untyped_storage().data_ptr(), None)
    assert change.grad_fn is not None
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(
    "overrides", [{}, {"optim__automatic_mp": True, "optim__amp_dtype": "bfloat16"}, {"training__recompute": True}]
)
def test_activations_are_those_of_a_real_pass(overrides: dict[str, Any]) -> None:
    config = tiny_config(**NETWORK, **overrides)
    counted = _activation_bytes(config, 5, "cpu")
    if config.training.recompute:
        assert saved_bytes(config, 5) < counted < saved_bytes(tiny_config(**NETWORK), 5), "the ends, and the largest stage"
    else:
        assert counted == pytest.approx(saved_bytes(config, 5), rel=0.01)


def test_activations_grow_with_images() -> None:
    config = tiny_config(**NETWORK, optim__automatic_mp=True, optim__amp_dtype="bfloat16")
    activations = Activations.of(config, "cpu")
    assert activations.batch + 7 * activations.image == pytest.approx(_activation_bytes(config, 7, "cpu"), rel=0.01)
    assert activations.batch > 0, "weights in bfloat16, once"


def test_recomputing_gives_the_same_numbers_bit_for_bit() -> None:
    """Dropout too, whose masks are drawn twice."""
    gradients = []
    for recompute in (False, True):
        trainer = Trainer(tiny_config(**NETWORK, training__recompute=recompute), CPU)
        nn.init.normal_(trainer.model.get_parameter("out.2.weight"), std=0.1)  # zero would hide other gradients
        captured: list[torch.Tensor] = []
        trainer.optimizer.register_step_pre_hook(
            lambda *_, trainer=trainer, captured=captured: captured.extend(w.grad.clone() for w in trainer.model.parameters())
        )
        trainer.train_step(torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
        gradients.append(captured)
    assert len(gradients[0]) > 20
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_compiled_losses_and_names_are_those_of_the_network_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the compiler's front half; the code that it makes is PyTorch's business, and takes minutes here."""
    modes = []
    compile_module = nn.Module.compile

    def front_half(self: nn.Module, *, mode: str, dynamic: bool) -> None:
        modes.append(mode)
        compile_module(self, backend="eager", dynamic=dynamic)

    monkeypatch.setattr(nn.Module, "compile", front_half)
    images = torch.rand(3, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    trainers = [Trainer(tiny_config(compile=mode), CPU) for mode in ("none", "reduce-overhead")]
    losses = [[trainer.train_step(batch).losses for batch in images] for trainer in trainers]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
    assert modes == ["reduce-overhead"]
    assert trainers[1].state_dict()["model"].keys() == trainers[0].state_dict()["model"].keys()


def test_cost_by_hand() -> None:
    """The paper's CIFAR-10 model: 61.06M parameters, 19.15 GFLOP an image, batches of 128, K = 200."""
    config = default_cifar10_configs.get_config()
    cost = Cost(config, flops=4e14, forward=19_150_000_000, parameters=61_060_000, activations=Activations(90_000_000, 10**8))
    assert cost.step_seconds(1) == pytest.approx(3 * 19.15e9 * 128 / 4e14)
    assert cost.step_seconds(8) == pytest.approx(3 * 19.15e9 * 16 / 4e14)
    assert cost.step_seconds(64) == pytest.approx(2 * 63 / 64 * 4 * 61.06e6 / 50e9), (
        "with two images each they wait for gradients"
    )
    assert cost.memory(8) == pytest.approx(20 * 61.06e6 + 1e8 + 16 * 90e6)
    assert cost.sampling_seconds(50_000, 1) == pytest.approx(50_000 * 200 * 19.15e9 / 4e14)
    config.training.recompute = True
    assert replace(cost, config=config).step_seconds(1) == pytest.approx(4 / 3 * 3 * 19.15e9 * 128 / 4e14)
    config.training.accumulation_steps = 4
    assert cost.memory(8) == pytest.approx(20 * 61.06e6 + 1e8 + 4 * 90e6)


def test_plan_needs_neither_data_nor_directory_and_leaves_nothing(tmp_path: Path) -> None:
    command: list[str | Path] = [sys.executable, ROOT / "train.py", "--config", ROOT / "configs/mnist/small_mnist.py", "--plan"]
    done = subprocess.run([*command, "--config.data.path=nowhere"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "3.70M parameters" in done.stdout
    assert done.stdout.count("device-hours") == 2
    assert [line.split()[0] for line in done.stdout.splitlines()[-3:]] == ["1", "8", "64"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("tflops", "utilization", "named"), [(0, 0.4, "plan_tflops=0"), (1, 1.5, "plan_utilization=1.5")])
def test_impossible_devices(tflops: float, utilization: float, named: str) -> None:
    with pytest.raises(UserError, match=named):
        plan(tiny_config(), tflops, utilization)


def test_the_default_device_is_as_fast_as_the_precision_allows() -> None:
    assert "67 TFLOP/s a device" in plan(tiny_config(), None, 0.4)
    assert "989 TFLOP/s a device" in plan(tiny_config(optim__automatic_mp=True, optim__amp_dtype="bfloat16"), None, 0.4)


def test_batches_that_cannot_be_shared_out_are_named() -> None:
    assert "64  a batch of 8 cannot be shared out evenly" in plan(tiny_config(training__batch_size=8), 1, 1)
