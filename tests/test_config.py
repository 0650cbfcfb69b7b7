"""Configurations: every experiment's settings, no dead keys, and one clear line for each mistake."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from configs import default
from model_code import build_blur, build_model
from scripts.config import ROOT, differences, leaves, refuse_differences, to_json, validate
from scripts.device import Precision
from scripts.errors import UserError
from scripts.training.plan import Work, describe
from tests.conftest import tiny_config

EXPERIMENTS = sorted(
    str(path.relative_to(ROOT).with_suffix("")).replace("/", ".") for path in (ROOT / "configs").glob("*/*.py")
)

# size, channels, batch, K, sigma_B max, channel_mult, blocks, attention_levels, dropout, lr, ema, amp, eval batch
TABLE: dict[str, tuple[Any, ...]] = {
    "mnist.default_mnist_configs": (28, 1, 128, 100, 20, (1, 2, 2), 4, (2,), 0.1, 2e-4, 0.999, False, 256),
    "mnist.small_mnist": (28, 1, 128, 50, 20, (1, 1, 1), 4, (2,), 0.1, 2e-4, 0.999, False, 256),
    "cifar10.default_cifar10_configs": (32, 3, 128, 200, 24, (1, 2, 2, 2), 4, (2, 3), 0.1, 2e-4, 0.999, True, 256),
    "lsun_church.default_lsun_configs": (128, 3, 32, 400, 64, (1, 2, 3, 4, 5), 4, (2, 3, 4), 0.1, 2e-5, 0.999, True, 9),
    "afhq.default_afhq_configs": (256, 3, 32, 200, 128, (1, 2, 3, 4, 5), 3, (2, 3, 4), 0.3, 1e-4, 0.9999, False, 4),
    "afhq.img_size_64": (64, 3, 128, 200, 32, (1, 2, 3, 4), 2, (2, 3), 0.1, 1e-4, 0.999, False, 9),
    "ffhq.default_ffhq_configs": (256, 3, 32, 200, 128, (1, 2, 3, 4, 5), 3, (2, 3, 4), 0.3, 2e-5, 0.9999, True, 4),
    "ffhq.img_size_128_maxblur128": (128, 3, 32, 200, 128, (1, 2, 3, 4, 5), 2, (2, 3, 4), 0.1, 2e-4, 0.9999, True, 9),
}


@pytest.mark.parametrize("name", TABLE)
def test_settings_of_the_paper(name: str) -> None:
    config = importlib.import_module(f"configs.{name}").get_config()
    data, model, optim = config.data, config.model, config.optim
    found = (
        data.image_size, data.num_channels, config.training.batch_size, model.K, model.blur_sigma_max, model.channel_mult,
        model.num_res_blocks, model.attention_levels, model.dropout, optim.lr, model.ema_rate, optim.automatic_mp,
        config.eval.batch_size,
    )  # fmt: skip
    assert found == TABLE[name]
    common = (model.sigma, model.blur_sigma_min, model.num_heads, optim.warmup, optim.grad_clip, config.training.n_iters)
    assert common == (0.01, 0.5, 1, 5000, 1, 1300001)
    assert model.model_channels == (64 if name == "mnist.small_mnist" else 128)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_config_is_valid_and_builds(name: str) -> None:
    config = importlib.import_module(name).get_config()
    validate(config)
    with torch.device("meta"):
        build_model(config)
    assert len(build_blur(config).schedule) == config.model.K + 1


@pytest.mark.parametrize(
    ("name", "gflop"),
    [("mnist.small_mnist", 2.0), ("mnist.default_mnist_configs", 14.4), ("cifar10.default_cifar10_configs", 19.2)],
)
def test_work_per_forward_pass(name: str, gflop: float) -> None:
    assert Work.of(importlib.import_module(f"configs.{name}").get_config()).forward / 1e9 == pytest.approx(gflop, abs=0.05)


def attribute_chains(tree: ast.AST) -> Iterator[tuple[str, ...]]:
    """The names of every a.b.c in a module, aliases such as `training = config.training` resolved."""
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            targets, values = node.targets[0], node.value
            pairs = zip(targets.elts, values.elts, strict=True) if isinstance(targets, ast.Tuple) and isinstance(
                values, ast.Tuple
            ) and len(targets.elts) == len(values.elts) else [(targets, values)]  # fmt: skip
            for target, value in pairs:
                if isinstance(target, ast.Name) and isinstance(value, ast.Attribute):
                    aliases[target.id] = value.attr
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = node.value
            if isinstance(owner, ast.Attribute):
                yield owner.attr, node.attr
            elif isinstance(owner, ast.Name):
                yield aliases.get(owner.id, owner.id), node.attr


def test_every_key_is_read_somewhere() -> None:
    """Outside its definition and its check: a key that nothing uses is a lie to the user."""
    files = [*ROOT.glob("*.py"), *(ROOT / "scripts").glob("*.py"), *(ROOT / "model_code").glob("*.py")]
    used: set[tuple[str, ...]] = set()
    for file in files:
        if file.name != "config.py":
            used |= set(attribute_chains(ast.parse(file.read_text())))
    unread = [key for key, _ in leaves(default.get_config()) if tuple(f"config.{key}".split(".")[-2:]) not in used]
    assert not unread


@pytest.mark.parametrize("script", ["train.py", "sample.py", "evaluate.py", "scripts/tools/benchmark.py"])
def test_every_flag_is_read(script: str) -> None:
    tree = ast.parse((ROOT / script).read_text())
    defined = {
        node.targets[0].id
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Call)
    }
    read = {
        node.value.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "value" and isinstance(node.value, ast.Name)
    }
    assert defined
    assert defined <= read


@pytest.mark.parametrize(
    ("key", "value", "right"),
    [
        ("model__K", 0, "at least 1"),
        ("model__K", -3, "at least 1"),
        ("model__blur_sigma_min", 0.0, "greater than 0"),
        ("model__blur_sigma_max", 0.1, "at least model.blur_sigma_min = 0.5"),
        ("model__sigma", 0.0, "greater than 0"),
        ("model__delta_over_sigma", -1.0, "at least 0"),
        ("model__protocol", "papers", "'paper' or 'released'"),
        ("model__dropout", 1.0, r"in \[0, 1\)"),
        ("model__ema_rate", 1.5, r"in \[0, 1\)"),
        ("model__model_channels", 48, "multiple of 32"),
        ("model__attention_levels", (1,), "levels from 0 to 0"),
        ("model__channel_mult", (), "one positive integer of at most 64 per level"),
        ("model__channel_mult", (1, 0), "one positive integer of at most 64 per level"),
        ("model__channel_mult", (1, 1, 1, 1, 1), "divisible by 16, for 5 levels"),
        ("model__num_heads", 5, "divisor of the channels"),
        ("training__batch_size", 0, "at least 1"),
        ("training__accumulation_steps", 3, "divisor of training.batch_size = 4"),
        ("training__log_freq", 0, "at least 1"),
        ("training__max_bad_steps", 0, "at least 1"),
        ("eval__batch_size", 0, "at least 1"),
        ("eval__num_images", -1, "at least 0"),
        ("data__num_channels", 2, "1 or 3"),
        ("data__image_size", 0, "at least 1"),
        ("optim__lr", 0.0, "greater than 0"),
        ("optim__optimizer", "SGD", "'Adam' or 'AdamW'"),
        ("optim__schedule", "linear", "'constant' or 'cosine'"),
        ("optim__amp_dtype", "float8", "'auto', 'bfloat16' or 'float16'"),
        ("optim__fp16_fallback", "float16", "'', 'bfloat16' or 'float32'"),
        ("optim__grad_clip", -1.0, "at least 0"),
        ("seed", -1, "from 0"),
        ("seed", 2**64, "an integer, such as 42"),
        ("model__K", True, "an integer, such as 100"),
        ("model__K", 10**15, "at most 100000"),
        ("model__sigma", "a", "a number, such as 0.01"),
        ("model__channel_mult", "12", "a tuple of integers"),
        ("data__random_flip", 1, "True or False"),
        ("data__path", "a\x1b[2Jb", "text in one line"),
    ],
)
def test_bad_values(key: str, value: object, right: str) -> None:
    """The message names a key, its value and what would be right."""
    config = tiny_config()
    with config.ignore_type():
        config.update_from_flattened_dict({key.replace("__", "."): value})
    with pytest.raises(UserError, match=right) as error:
        validate(config)
    assert str(error.value).startswith("config.")
    assert "\n" not in str(error.value)


def test_keys_that_should_not_or_should_be_there() -> None:
    config = tiny_config()
    config.model.blur_sigma = 3
    with pytest.raises(UserError, match=r"config\.model\.blur_sigma: there is no such key"):
        validate(config)
    config = tiny_config()
    del config.optim.lr
    with pytest.raises(UserError, match=r"config\.optim\.lr is missing"):
        validate(config)


def test_changed_keys_are_named() -> None:
    before = to_json(tiny_config())
    after = tiny_config(model__K=5, data__random_flip=False, optim__lr=1.0, model__delta_over_sigma=2.0)
    assert set(differences(before, after)) == {"model.K", "data.random_flip", "optim.lr", "model.delta_over_sigma"}
    with pytest.raises(UserError, match=r"config\.data\.random_flip was True, now False; config\.model\.K was 3, now 5$"):
        refuse_differences(before, after, {"model.delta_over_sigma"}, "the checkpoint")
    refuse_differences(before, tiny_config(optim__lr=1.0, training__n_iters=9), set(), "the checkpoint")


def test_plan_says_what_is_to_come() -> None:
    text = describe(tiny_config(training__accumulation_steps=2), Precision.named(torch.device("cpu"), "float32"), 4500, 500, 0)
    for part in ("4500 training images", "500 held out", "batches of 4 in 2 parts", "float32", "K = 3"):
        assert part in text


def test_layers_of_the_program() -> None:
    """Entry scripts use scripts/, scripts/ uses model_code/, never back; model_code/ knows no files, flags or data sets."""
    forbidden = {"model_code": {"scripts", "configs", "absl", "torchvision", "PIL", "mpi4py", "tests"}, "scripts": {"tests"}}
    for package, names in forbidden.items():
        for file in (ROOT / package).glob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                found = {module.split(".")[0] for module in modules} & (names | {"train", "sample", "evaluate"})
                assert not found, f"{Path(package) / file.name} imports {found}"
