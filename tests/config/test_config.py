"""Configurations: every experiment's settings, files of the original release, no dead keys, one
clear line for each mistake.
"""

import ast
import importlib
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict

import model_code
from configs import default
from model_code import HEAT, PROCESSES, build_process
from model_code.unet import MODEL_KEYS
from scripts.config.load import flatten, load, to_json
from scripts.config.paths import ROOT
from scripts.config.resolve import config_warnings, differences, refuse_differences, resolve
from scripts.runtime.device import Precision
from scripts.training.plan import Work, describe
from tests.conftest import bad_input
from tests.images import numbered
from tests.tiny import tiny_config

EXPERIMENTS = sorted(
    str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
    for path in (ROOT / "configs").glob("*/*.py")
)

# size, channels, batch, K, sigma_B max, channel_mult, blocks, attention_levels, dropout, lr, ema,
# amp, eval batch
TABLE: dict[str, tuple[Any, ...]] = {
    "mnist.default_mnist_configs": (
        28, 1, 128, 100, 20, (1, 2, 2), 4, (2,), 0.1, 2e-4, 0.999, False, 256,
    ),
    "mnist.small_mnist": (28, 1, 128, 50, 20, (1, 1, 1), 4, (2,), 0.1, 2e-4, 0.999, False, 256),
    "cifar10.default_cifar10_configs": (
        32, 3, 128, 200, 24, (1, 2, 2, 2), 4, (2, 3), 0.1, 2e-4, 0.999, True, 256,
    ),
    "lsun_church.default_lsun_configs": (
        128, 3, 32, 400, 64, (1, 2, 3, 4, 5), 4, (2, 3, 4), 0.1, 2e-5, 0.999, True, 9,
    ),
    "afhq.default_afhq_configs": (
        256, 3, 32, 200, 128, (1, 2, 3, 4, 5), 3, (2, 3, 4), 0.3, 1e-4, 0.9999, False, 4,
    ),
    "afhq.img_size_64": (64, 3, 128, 200, 32, (1, 2, 3, 4), 2, (2, 3), 0.1, 1e-4, 0.999, False, 9),
    "ffhq.default_ffhq_configs": (
        256, 3, 32, 200, 128, (1, 2, 3, 4, 5), 3, (2, 3, 4), 0.3, 2e-5, 0.9999, True, 4,
    ),
    "ffhq.img_size_128_maxblur128": (
        128, 3, 32, 200, 128, (1, 2, 3, 4, 5), 2, (2, 3, 4), 0.1, 2e-4, 0.9999, True, 9,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_settings_of_the_paper(name: str) -> None:
    config = importlib.import_module(f"configs.{name}").get_config()
    data, model, optim = config.data, config.model, config.optim
    found = (
        data.image_size, data.num_channels, config.training.batch_size,
        model.K, model.blur_sigma_max, model.channel_mult, model.num_res_blocks,
        model.attention_levels, model.dropout, optim.lr, model.ema_rate, optim.automatic_mp,
        config.eval.batch_size,
    )  # fmt: skip
    assert found == TABLE[name]
    common = (
        model.sigma,
        model.blur_sigma_min,
        model.num_heads,
        optim.warmup,
        optim.grad_clip,
        data.random_flip,
    )
    assert common == (0.01, 0.5, 1, 5000, 1, False)
    assert (config.training.n_iters, config.training.eval_freq) == (1300001, 100)
    assert model.model_channels == (64 if name == "mnist.small_mnist" else 128)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_config_is_valid_and_builds(name: str) -> None:
    resolve(importlib.import_module(name).get_config())  # builds both


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_evaluation_takes_at_most_2_percent_of_training(name: str) -> None:
    """A forward pass costs a third of what a training step spends on an image."""
    config = importlib.import_module(name).get_config()
    held_out = {"mnist5k": 500}.get(config.data.dataset, 1_000_000)
    images = min(config.eval.num_images or held_out, held_out)
    assert images / 3 <= 0.02 * config.training.eval_freq * config.training.batch_size


@pytest.mark.parametrize(
    ("name", "gflop"),
    [
        ("mnist.small_mnist", 2.0),
        ("mnist.default_mnist_configs", 14.4),
        ("cifar10.default_cifar10_configs", 19.2),
    ],
)
def test_work_per_forward_pass(name: str, gflop: float) -> None:
    config = importlib.import_module(f"configs.{name}").get_config()
    assert Work.of(resolve(config)).forward / 1e9 == pytest.approx(gflop, abs=0.05)


def test_every_key_is_read_somewhere() -> None:
    """Outside its definition and its check: a key that nothing uses is a lie to the user."""
    used = {("model", name) for name in MODEL_KEYS}
    for file in [
        *ROOT.glob("*.py"),
        *(ROOT / "scripts").rglob("*.py"),
        *(ROOT / "model_code").rglob("*.py"),
    ]:
        if file.parent.name != "config":
            attributes = [
                node
                for node in ast.walk(ast.parse(file.read_text()))
                if isinstance(node, ast.Attribute)
            ]
            used |= {(ast.unparse(node.value).split(".")[-1], node.attr) for node in attributes}
    # Sections are read as config.optim.lr, optim.lr or evaluation.batch_size, keys without one as
    # CONFIG.value.seed.
    names = {"config": ("config", "value"), "eval": ("eval", "evaluation")}
    for key, _ in flatten(default.get_config()):
        section, name = f"config.{key}".split(".")[-2:]
        assert used & {(alias, name) for alias in names.get(section, (section,))}, key


@pytest.mark.parametrize("name", ["heat", "blurring_diffusion"])
def test_a_process_reads_what_it_says(name: str) -> None:
    """Another value changes the process, or the training with it, exactly if it says that it reads
    the key.
    """
    other: dict[str, object] = {
        "model.sigma": 0.02,
        "training.level_weighting": 1.0,
        "model.delta_over_sigma": 2.0,
    }
    other |= {"model.blur_sigma_min": 0.7, "model.blur_sigma_max": 9.0, "training.noise_images": 5}
    other |= {"model.blur_schedule": (0, 0.5, 1.0, 4.0), "model.protocol": "released"}
    assert other.keys() == HEAT

    def facts(config: ConfigDict) -> dict[str, object]:
        process = build_process(config)
        return {
            "process": str(process),
            "delta": getattr(process, "delta", None),
            "weights": process.level_weights(config.training.level_weighting).tolist(),
            "images measured": process.measures_calibration and config.training.noise_images,
        }

    plain = tiny_config(model__process=name)
    for key, value in other.items():
        changed = tiny_config(model__process=name)
        changed.update_from_flattened_dict({key: value})
        read = key in PROCESSES[name].reads
        assert (facts(changed) != facts(plain)) == read, key
        assert config_warnings(changed) == (
            [] if read else [f"config.{key} = {value}: not read by process {name}"]
        )


@pytest.mark.parametrize(
    ("key", "value", "right"),
    [
        ("model__K", 0, "at least 1"),
        ("model__protocol", "papers", "one of 'paper', 'released'"),
        ("model__dropout", 1.0, r"in \[0, 1\)"),
        ("model__model_channels", 48, "multiple of 32"),
        ("model__attention_levels", (1,), "levels from 0 to 0"),
        (
            "model__patch_size",
            16,
            "divisible by 16, for 1 levels in model.channel_mult and model.patch_size = 16",
        ),
        ("model__channel_mult", (1, 1, 1, 1, 1), "divisible by 16, for 5 levels"),
        ("model__channel_mult", (1, 1.5), "a positive integer per level"),
        ("model__num_heads", 5, "divisor of the channels"),
        ("model__num_head_channels", 12, "divisor of the channels"),
        ("training__accumulation_steps", 3, "divisor of training.batch_size = 4"),
        ("eval__num_images", -1, "at least 0"),
        ("data__num_channels", 0, "at least 1"),
        ("data__image_size", (8, 0), "a number of pixels for both sides"),
        ("data__image_size", "8x12", "a number of pixels for both sides"),
        ("data__fit", "fill", "one of 'crop', 'pad', 'stretch'"),
        ("data__num_workers", -2, "at least 0, or -1"),
        ("optim__lr", float("inf"), "greater than 0"),
        ("training__level_weighting", float("nan"), "a finite number"),
        ("training__level_weighting", float("-inf"), "a finite number"),
        ("training__level_weighting", 1e3, "nearer to 0, so that no weight overflows"),
        ("model__blur_sigma_max", float("nan"), "a finite number"),
        ("model__network", "u-net", "one of unet"),
        ("model__process", "cold", "one of heat, blurring_diffusion"),
        ("seed", 2**64, "from 0 to 2"),
    ],
)
def test_bad_values(key: str, value: object, right: str) -> None:
    """The message names a key, its value and what is expected."""
    config = tiny_config(**{key: value})
    with bad_input(right) as error:
        resolve(config)
    assert str(error.value).startswith("config.")


@pytest.mark.parametrize(("warmup", "said"), [(9, False), (10, False), (11, True), (5000, True)])
def test_a_warm_up_that_never_ends_is_said(warmup: int, said: bool) -> None:
    lines = config_warnings(tiny_config(optim__warmup=warmup, training__n_iters=10))
    assert [
        line.startswith(f"config.optim.warmup = {warmup}: is longer than the run") for line in lines
    ] == [True] * said


def test_every_number_is_checked() -> None:
    """No key takes a number that is none, whatever process reads it."""
    for name in PROCESSES:
        for key, value in flatten(tiny_config(model__process=name)):
            if isinstance(value, float):
                config = tiny_config(model__process=name)
                config.update_from_flattened_dict({key: float("nan")})
                with bad_input(rf"^config\.{re.escape(key)} = nan: must be"):
                    resolve(config)


def test_another_network_brings_its_own_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The U-Net's settings then have no say."""

    def build(config: ConfigDict) -> torch.nn.Module:
        if config.model.model_channels > 50:
            raise ValueError("config.model.model_channels = 60: must be at most 50")
        return torch.nn.Conv2d(1, 1, 3)

    monkeypatch.setitem(model_code.NETWORKS, "convolution", build)
    resolve(
        tiny_config(
            model__network="convolution", model__model_channels=48, model__attention_levels=(9,)
        )
    )
    with bad_input(r"config\.model\.model_channels = 60: must be at most 50"):
        resolve(tiny_config(model__network="convolution", model__model_channels=60))


def test_a_key_that_should_not_be_there() -> None:
    config = tiny_config()
    config.model.blur_sigmamax = 3
    with bad_input(
        r"config\.model\.blur_sigmamax: .* did you mean config\.model\.blur_sigma_max\?",
    ):
        resolve(config)


def release_file(tmp_path: Path, *changes: str) -> str:
    """A configuration file in the manner of the original release: its keys, but not ours; a table
    of blurs; a device.
    """
    path = tmp_path / "release.py"
    body = """
config = ml_collections.ConfigDict()
for name in ("training", "sampling", "eval", "data", "model"):
    config[name] = ml_collections.ConfigDict()
model = config.model
config.training.batch_size = 32
config.eval.enable_sampling = False
config.eval.num_samples = 50000
config.data.dataset = "MNIST"
config.data.centered = False
model.K, model.blur_sigma_min, model.blur_sigma_max = 50, 0.5, 24
model.num_head_channels = model.num_heads_upsample = -1
model.use_fp16, model.skip_rescale = False, True
blurs = np.exp(np.linspace(np.log(0.5), np.log(24), 50))
model.blur_schedule = np.array([0] + list(blurs))
config.device = torch.device("cpu")
"""
    lines = [*body.strip().splitlines(), *changes, "return config"]
    head = "import ml_collections\nimport numpy as np\nimport torch\n\ndef get_config():\n"
    path.write_text(head + textwrap.indent("\n".join(lines), "    "))
    return str(path)


@pytest.mark.parametrize("change", ["", "model.blur_schedule[-1] = 0"])
def test_a_file_of_the_original_release_works_as_it_is(change: str, tmp_path: Path) -> None:
    """Newer keys get their defaults, keys without effect are named in one warning.

    Its AFHQ-64 file zeroes the last blur.
    """
    with pytest.warns(UserWarning, match=r"config\.data\.centered, .*use_fp16: ignored") as warned:
        config = load(release_file(tmp_path, change))
    assert len(warned) == 1
    resolve(config)
    model = config.model
    assert (config.training.batch_size, model.K, model.process, config.device) == (
        32,
        50,
        "heat",
        "cpu",
    )
    assert type(model.blur_sigma_max) is float, "so that an override may be 20.5"
    assert model.blur_schedule == "log", "what K and both ends give, also after an override of K"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.K = True", r"config\.model\.K = True: must be int, such as 100"),
        ("model.sigma = None", r"config\.model\.sigma = None: must be float, such as 0\.01"),
        (
            "model.channel_mult = '12'",
            r"config\.model\.channel_mult = 12: must be tuple, such as \(1, 2, 2\)",
        ),
        ("model.use_fp16 = True", "use_fp16 = True: must be False"),
        ("model.num_heads_upsample = 4", "num_heads_upsample = 4: must be -1 or 1"),
        (
            "model.num_headz = 4",
            r"config\.model\.num_headz: .* did you mean config\.model\.num_heads\?",
        ),
        ("return 3", "returns int, not a ConfigDict"),
        ("raise IndexError('no')", r"release\.py: IndexError: no \(line \d+\)"),
    ],
)
def test_files_that_would_give_another_model(change: str, message: str, tmp_path: Path) -> None:
    with bad_input(message):
        load(release_file(tmp_path, change))


@pytest.mark.parametrize(
    "text", ["{}", "3", "null", "[]", '{"model": 3}', '{"seed": 1, "model": {"K": 7}}', "no"]
)
def test_json_of_something_else(text: str, tmp_path: Path) -> None:
    """Not taken for the default experiment."""
    (tmp_path / "package.json").write_text(text)
    with bad_input(r"package\.json: not the JSON of a configuration"):
        load(str(tmp_path / "package.json"))


def test_the_release_finds_its_names() -> None:
    """Its files import each other's get_default_configs."""
    for name in TABLE:
        if "default" in name:
            module = importlib.import_module(f"configs.{name}")
            assert module.get_default_configs().to_dict() == module.get_config().to_dict()


def test_changed_keys_are_named() -> None:
    before = to_json(tiny_config())
    after = tiny_config(
        model__K=5, data__random_flip=False, optim__lr=1.0, model__delta_over_sigma=2.0
    )
    assert set(differences(before, after)) == {
        "model.K",
        "data.random_flip",
        "optim.lr",
        "model.delta_over_sigma",
    }
    with bad_input(
        r"config\.data\.random_flip was True, now False; config\.model\.K was 3, now 5$",
    ):
        refuse_differences(before, after, {"model.delta_over_sigma"}, "the checkpoint")
    same = tiny_config(optim__lr=1.0, training__n_iters=9, data__image_size=(8, 8))
    refuse_differences(before, same, set(), "the checkpoint")
    assert "data.image_size" in differences(before, tiny_config(data__image_size=(8, 16)))


def test_plan_says_what_is_to_come() -> None:
    config, precision = (
        tiny_config(training__accumulation_steps=2),
        Precision.named(torch.device("cpu"), "float32"),
    )
    text = describe(resolve(config), precision, numbered(90), numbered(10), 0)
    for part in (
        "90 training images",
        "10 held out",
        "batches of 4 in 2 microbatches",
        "float32",
        "K = 3",
    ):
        assert part in text
