"""One table of flags: each means something where it is said to, and is refused elsewhere."""

import re
from typing import Any

import pytest
from absl.flags import IllegalFlagValueError

from scripts.config.flags import FLAGS, MODES, NO_EFFECT, check, flags_of, parse
from scripts.config.paths import ROOT
from scripts.errors import UserError
from scripts.evaluation import metrics
from tests.conftest import bad_input

DRAW = "config workdir checkpoint batch_size delta steps eta seed precision guidance "
PICTURE = DRAW + "sampler init prior number out class "
KINDS = "same_init share_noise interpolate export_dir save_sample_freq"
SCORE = DRAW + "mode sweep out dataset_name experiment_name param_name "
SAMPLES = SCORE + "sampler init num_gen samples "
INCEPTION = "cleanfid_mode inception_path"
REFERENCE = f"dataset_split dataset_name_cleanfid {INCEPTION} "
FEATURES = SAMPLES + REFERENCE + "feature_extractor per_class "
BOUND = SCORE + "dataset_split num_images exact dequantize "
RELEASE = "config workdir checkpoint dataset_name experiment_name param_name "
GIVEN = "config workdir mode batch_size seed num_gen samples out dataset_name experiment_name "
SEEDS = "per_init from_level "
FROM_PICTURES = (
    "config workdir checkpoint out seed precision per_init delta steps eta class guidance "
)
MEANINGFUL = [
    ("train", "", "config workdir plan"),
    ("train", "plan", "config workdir plan plan_tflops plan_utilization"),
    ("sample", "", PICTURE + KINDS + " super_resolve inpaint edit"),
    (
        "sample",
        "guidance",
        PICTURE + KINDS + " super_resolve inpaint edit guidance_interval",
    ),
    ("sample", "super_resolve", FROM_PICTURES + "super_resolve"),
    ("sample", "inpaint mask", FROM_PICTURES + "inpaint mask"),
    ("sample", "edit blur", FROM_PICTURES + "edit blur"),
    ("sample", "init", PICTURE.replace("prior", SEEDS) + KINDS),
    ("sample", "same_init", PICTURE + "same_init save_sample_freq"),
    ("sample", "same_init init", PICTURE.replace("prior", "from_level same_init save_sample_freq")),
    ("sample", "share_noise", PICTURE + "share_noise save_sample_freq"),
    ("sample", "interpolate", PICTURE + "interpolate num_points"),
    (
        "sample",
        "export_dir num_samples",
        DRAW + "sampler init prior export_dir num_samples export class",
    ),
    ("evaluate", "mode=elbo", BOUND + "num_levels_per_image"),
    ("evaluate", "mode=elbo exact", BOUND),
    ("evaluate", "mode=fid", FEATURES),
    ("evaluate", "mode=fid init", FEATURES.replace(" samples ", " ") + SEEDS),
    ("evaluate", "mode=kid", FEATURES),
    ("evaluate", "mode=prdc", FEATURES + "k"),
    ("evaluate", "mode=all", FEATURES + "k"),
    ("evaluate", "mode=kid guidance", FEATURES.replace(" samples ", " ") + "guidance_interval"),
    (
        "evaluate",
        "mode=fid feature_extractor=classifier",
        FEATURES.replace("dataset_name_cleanfid " + INCEPTION, ""),
    ),
    (
        "evaluate",
        "mode=fid feature_extractor=dinov2",
        FEATURES.replace(INCEPTION, "dinov2_path"),
    ),
    ("evaluate", "mode=spectrum", SAMPLES),
    ("evaluate", "mode=copying", SAMPLES),
    ("evaluate", "mode=diversity", SAMPLES.replace(" samples ", " ") + SEEDS),
    ("evaluate", "mode=spectrum samples", GIVEN + "param_name"),
    ("evaluate", "mode=spectrum out", SAMPLES.replace("dataset_name experiment_name ", "")),
    (
        "evaluate",
        "save_stats custom_name dataset_path",
        "save_stats custom_name dataset_path cleanfid_mode inception_path batch_size",
    ),
]


def values_of(command: str, words: str) -> dict[str, Any]:
    """All values of a command line of these words; those without a value have some."""
    values = {flag.name: flag.default for flag in flags_of(command)}
    values |= dict.fromkeys({"config", "workdir"} & values.keys(), "given")
    for word in words.split():
        name, equals, value = word.partition("=")
        values[name] = value if equals else "given"
    return values


def names_of(words: str) -> set[str]:
    """The flags that the words give."""
    return {word.partition("=")[0] for word in words.split() if word[-1] != "="}


@pytest.mark.parametrize(("command", "words", "meaningful"), MEANINGFUL)
def test_a_flag_means_something_or_is_refused(command: str, words: str, meaningful: str) -> None:
    """Beside the words. A switch to another kind or mode is refused, too."""
    base, here = values_of(command, words), names_of(words)
    check(command, base, here)
    for flag in flags_of(command):
        if flag.help == NO_EFFECT:
            continue
        values = base if flag.name in here else base | {flag.name: "given"}
        refused = ""
        try:
            check(command, values, here | {flag.name})
        except UserError as error:
            refused = str(error)
        accepted = "has no meaning" not in refused
        assert accepted == (flag.name in meaningful.split()), refused or flag.name


@pytest.mark.parametrize(
    ("command", "words", "line"),
    [
        (
            "evaluate",
            "mode=spectrum k=7",
            "--k has no meaning with --mode=spectrum, only with --mode=prdc or",
        ),
        ("evaluate", "mode=elbo num_gen=7", "--num_gen has no meaning with --mode=elbo"),
        (
            "evaluate",
            "mode=copying exact",
            "--exact has no meaning with --mode=copying, only with --mode=elbo",
        ),
        ("evaluate", "save_stats mode=kid", "--mode has no meaning with --save_stats"),
        ("evaluate", "save_stats custom_name", "--dataset_path is needed with --save_stats"),
        ("evaluate", "samples config= workdir=", "--config is needed with --samples"),
        ("evaluate", "workdir=", "--workdir is needed: Run directory"),
        ("sample", "num_points=3", "--num_points has no meaning without --interpolate"),
        ("sample", "export_dir", "--num_samples is needed with --export_dir"),
        ("sample", "inpaint", "--mask is needed with --inpaint"),
        ("sample", "edit", "--blur is needed with --edit"),
        ("sample", "edit blur init", "--init has no meaning with --edit"),
        ("train", "workdir=", "--workdir is needed: Run directory"),
        ("train", "config=", "--config is needed: Configuration: a file"),
    ],
)
def test_refusals(command: str, words: str, line: str) -> None:
    """Names of the flag and of what it does not go with, or of what is missing."""
    with bad_input(f"^{re.escape(line)}"):
        check(command, values_of(command, words), names_of(words))


@pytest.mark.parametrize(
    ("command", "given"),
    [
        ("sample", "config workdir checkpoint interpolate num_points batch_size"),
        ("evaluate", RELEASE + "mode=elbo delta"),
        (
            "evaluate",
            RELEASE + "mode=fid delta dataset_name_cleanfid dataset_split batch_size num_gen",
        ),
        ("evaluate", "save_stats custom_name dataset_path cleanfid_mode"),
    ],
)
def test_command_lines_of_the_release(command: str, given: str) -> None:
    check(command, values_of(command, given), names_of(given))


@pytest.mark.parametrize("seed", [0, 2**64 - 1, -1, 2**64])
def test_seeds_are_of_64_bits(seed: int) -> None:
    """As those of evaluate.py and config.seed."""
    line = ["sample.py", "--workdir=run", f"--seed={seed}"]
    if 0 <= seed < 2**64:
        assert parse("sample", line).seed == seed
    else:
        with pytest.raises(IllegalFlagValueError, match=rf"--seed={seed}: .* in the range \[0, "):
            parse("sample", line)


def test_modes_are_those_of_evaluation() -> None:
    assert set(MODES) == {"elbo", *metrics.MODES}
    (extractor,) = (flag for flag in FLAGS if flag.name == "feature_extractor")
    for name, mode in metrics.MODES.items():
        of_features = mode[0].needs in ("moments", "features")
        assert of_features == (f"mode={name}" in extractor.only.split())


def test_every_flag_is_read() -> None:
    """By its command; conditions are about flags that exist."""
    names = {flag.name for flag in FLAGS}
    commands = {path.stem: path.read_text() for path in ROOT.glob("*.py")}
    commands |= {path.stem: path.read_text() for path in (ROOT / "scripts/tools").glob("*.py")}
    commands["sample"] += (ROOT / "scripts/sampling/from_pictures.py").read_text()
    for command in ("evaluate", "planted"):
        commands[command] += (ROOT / "scripts/evaluation/command.py").read_text()
    for flag in FLAGS:
        for command in flag.commands.split():
            read = re.search(rf"(flags|settings)(\.|, \"){flag.name}\b", commands[command])
            assert flag.help == NO_EFFECT or read, (command, flag.name)
        words = f"{flag.only} {flag.never} {flag.unless} {flag.alone}".split()
        assert {word.partition("=")[0] for word in words} <= names, flag.name
