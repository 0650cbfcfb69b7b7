"""Flags of all commands: one table of what each takes and where it means something.

And what commands print: bad input is one line, a closed terminal no error.
"""

import errno
import io
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NoReturn

from absl import flags
from ml_collections import config_flags

from scripts.config.load import RUN_CONFIG, load, refuse_unknown, trusted_processes
from scripts.config.paths import user_path
from scripts.errors import USAGE_ERROR, UserError, error_line, line_for, one_line

CONFIG, PATH, INTEGER, FLOAT, STRING = "FILE", "PATH", "N", "X", "TEXT"
BOOL, ENUM, STRINGS = "BOOL", "ENUM", "TEXTS"
DEFINE: dict[str, Callable[..., object]] = {
    CONFIG: flags.DEFINE_string,
    PATH: flags.DEFINE_string,
    INTEGER: flags.DEFINE_integer,
    FLOAT: flags.DEFINE_float,
    STRING: flags.DEFINE_string,
    BOOL: flags.DEFINE_bool,
    ENUM: flags.DEFINE_enum,
    STRINGS: flags.DEFINE_multi_string,
}
"""By kinds of flags, of which --help shows the first five."""

Values = SimpleNamespace
"""The values of all flags of a command, by name."""


@dataclass(frozen=True)
class Flag:
    """A flag of some commands.

    Conditions are words: "interpolate" holds if that flag is set, "mode=elbo" if it has that value.
    """

    name: str
    commands: str
    kind: str
    default: Any
    help: str
    limits: dict[str, Any] = field(default_factory=dict)
    only: str = ""
    """Conditions of which one must hold for it to mean something.

    Those about flags that the command does not have never count.
    """
    never: str = ""
    """Conditions under each of which it means nothing."""
    required: str = ""
    """A condition under which it must be given, or `ALWAYS`."""
    unless: str = ""
    """Conditions under which it is not required."""
    alone: str = ""
    """The only flags that mean something beside this one; without, all may."""


ALWAYS = "always"
NO_EFFECT = "No effect, as in the original release, which defines this flag and does not read it."
OF_PICTURES = (
    "config workdir checkpoint out seed precision per_init delta steps eta "
    "class guidance guidance_interval"
)
FEATURES = "mode=fid mode=kid mode=prdc mode=all mode=classes"
PIXELS = "mode=spectrum mode=copying mode=diversity"
MODES = ("elbo", "fid", "kid", "prdc", "all", "classes", "spectrum", "copying", "diversity")
EXTRACTORS = ("inception", "classifier", "robust_classifier", "dinov2")
CLASSIFIERS = "feature_extractor=classifier feature_extractor=robust_classifier"
OTHER_EXTRACTORS = CLASSIFIERS + " feature_extractor=dinov2"

FLAGS = (
    Flag(
        "config", "sample evaluate export calibrate", CONFIG, None,
        "Configuration: a file of configs/ or your own, or the config.json of a run; by default "
        "that in --workdir. --config.section.key=value overrides any key of configs/default.py.",
        required="samples", unless="workdir",
    ),
    Flag(
        "config", "train benchmark data_sheet pack planted", CONFIG, None,
        "Configuration: a file of configs/ or your own, or the config.json of a run; by default "
        "that in --workdir. --config.section.key=value overrides any key of configs/default.py.",
        required=ALWAYS,
    ),
    Flag(
        "workdir", "train", PATH, None, "Run directory; a run that is already there is continued.",
        required=ALWAYS, unless="plan",
    ),
    Flag(
        "workdir", "sample evaluate calibrate publish export", PATH, None,
        "Run directory that train.py made, a published model, or a checkpoint's file.",
        required=ALWAYS, unless="samples",
    ),
    Flag(
        "workdir", "report", PATH, None, "Run directory; the flag's name may be left out.",
        required=ALWAYS,
    ),
    Flag(
        "run", "compare", STRINGS, [], "Run directories; the flag's name may be left out.",
        required=ALWAYS,
    ),
    Flag(
        "checkpoint", "sample calibrate export", INTEGER, 0,
        "n for checkpoints/checkpoint_n.pth, 0 for the newest.", {"lower_bound": 0},
    ),
    Flag(
        "checkpoint", "evaluate", STRING, "0",
        "n for checkpoints/checkpoint_n.pth, 0 for the newest; or several.", never="samples",
    ),
    Flag(
        "plan", "train", BOOL, False,
        "Print what training and sampling would cost on 1, 8 and 64 GPUs, and do nothing.",
    ),
    Flag(
        "plan_tflops", "train", FLOAT, None, "10^12 operations a second; by default an H100's.",
        {"lower_bound": 1e-3}, only="plan",
    ),
    Flag(
        "plan_utilization", "train", FLOAT, 0.4, "The part of that which is reached.",
        {"lower_bound": 0.01, "upper_bound": 1.0}, only="plan",
    ),
    Flag(
        "mode", "evaluate", ENUM, "fid",
        "What to compute; all: FID, KID and prdc; classes: the share of samples that a classifier "
        "takes for what they are to be.",
        {"enum_values": MODES},
    ),
    Flag(
        "batch_size", "sample", INTEGER, None,
        "Samples in a picture, by default 9, of each of several classes; or at a time in an "
        "export, by default config.eval.batch_size; with --interpolate not used, as in the "
        "release.",
        {"lower_bound": 1},
    ),
    Flag(
        "batch_size", "evaluate", INTEGER, None,
        "Images at a time; by default config.eval.batch_size.", {"lower_bound": 1},
    ),
    Flag(
        "same_init", "sample", BOOL, False, "One initial state for all samples.",
        never="share_noise interpolate export_dir",
    ),
    Flag(
        "share_noise", "sample", BOOL, False, "One noise sequence for all samples.",
        never="interpolate export_dir",
    ),
    Flag(
        "interpolate", "sample", BOOL, False, "A path from one sample to another.",
        never="export_dir",
    ),
    Flag(
        "super_resolve", "sample", PATH, None,
        "A picture, or a folder of some, to make as large as the model's images: a whole number "
        "of times.", alone=OF_PICTURES,
    ),
    Flag(
        "inpaint", "sample", PATH, None, "A picture, or a folder of some, of which a part is made.",
        alone=OF_PICTURES + " mask",
    ),
    Flag(
        "mask", "sample", PATH, None, "A picture that is white where that part is, else black.",
        only="inpaint", required="inpaint",
    ),
    Flag(
        "edit", "sample", PATH, None,
        "A picture, or a folder of some, to be blurred and made again.",
        alone=OF_PICTURES + " blur",
    ),
    Flag(
        "blur", "sample", STRING, "", "By how many pixels; several, with commas, make columns.",
        only="edit", required="edit",
    ),
    Flag(
        "num_points", "sample", INTEGER, 20, "Points on that path, both ends included.",
        {"lower_bound": 2}, only="interpolate",
    ),
    Flag(
        "delta", "sample evaluate export", STRING, None,
        "Sampling noise: a standard deviation, spectral or calibrated; by default calibrated "
        "where that was measured.", never="samples",
    ),
    Flag(
        "steps", "sample evaluate export", STRING, None,
        "Network calls for a sample: N (evenly spaced levels), N:bound (for the best bound) or "
        "all levels K,...,0. By default all levels.", never="samples",
    ),
    Flag(
        "eta", "sample evaluate export", FLOAT, None,
        "Share of fresh noise in a step: 1 is ancestral sampling, 0 deterministic (DDIM). Heat "
        "dissipation needs calibrated kernels for less than 1.",
        {"lower_bound": 0.0, "upper_bound": 1.0}, never="samples",
    ),
    Flag(
        "sampler", "sample evaluate", ENUM, "reverse",
        "reverse: a network call a step; multistep: the same with the last two estimates, for "
        "fewer steps (DPM-Solver++, where the network predicts x or v); heun: deterministic, two "
        "calls a step.",
        {"enum_values": ("reverse", "multistep", "heun")}, never="mode=elbo samples",
    ),
    Flag(
        "seed", "evaluate", STRING, None,
        "Sample i is a function of (seed, i), and whatever else is random of the seed; by default "
        "config.seed. Or several.",
    ),
    Flag(
        "seed", "sample", INTEGER, None,
        "Sample i is a function of (seed, i), and whatever else is random of the seed; by default "
        "config.seed.", {"lower_bound": 0, "upper_bound": 2**64 - 1},
    ),
    Flag(
        "class", "sample", STRING, None,
        "Classes of samples: a name, a number, several with commas, or all, in rows; by default as "
        "in the data. For networks that are not told classes, those of the images of --init=train "
        "or held_out.",
    ),
    Flag(
        "guidance", "sample evaluate", STRING, None,
        "g: F = F_none + g (F_class - F_none) of networks that are told classes; 1 is none, 0 "
        "tells no class.", never="samples",
    ),
    Flag(
        "guidance_interval", "sample evaluate", STRING, None,
        "lo,hi: the levels that are guided; by default all.", only="guidance",
    ),
    Flag(
        "per_class", "evaluate", BOOL, False,
        "Scores of each class, too: of samples that are to be of it, against images of it.",
        only=FEATURES, never="samples dataset_name_cleanfid",
    ),
    Flag(
        "init", "sample evaluate", STRING, None,
        "Images to start from: held_out, train, a folder, an image or an array (.npy, .npz); by "
        "default the prior's.", never="mode=elbo samples",
    ),
    Flag(
        "per_init", "sample evaluate", INTEGER, None,
        "Samples of each of these images; they differ in the noise.", {"lower_bound": 1},
        only="init mode=diversity super_resolve inpaint edit",
        never="same_init share_noise interpolate",
    ),
    Flag(
        "from_level", "sample evaluate", INTEGER, None,
        "The level to which these images are blurred; by default K.", {"lower_bound": 1},
        only="init mode=diversity",
    ),
    Flag(
        "prior", "sample", ENUM, "bank",
        "Initial states from the checkpoint, or from the data set.",
        {"enum_values": ["bank", "data"]}, never="init",
    ),
    Flag(
        "precision", "sample", ENUM, None,
        "What the network computes in; by default the fastest here, and float32 in an export.",
        {"enum_values": ["float32", "bfloat16", "float16"]},
    ),
    Flag(
        "precision", "evaluate", ENUM, "float32", "What the network computes in.",
        {"enum_values": ["float32", "bfloat16", "float16"]}, never="samples",
    ),
    Flag(
        "number", "sample", INTEGER, None,
        "Draw the i-th batch of samples instead of the first, 0.", {"lower_bound": 0},
        never="export_dir",
    ),
    Flag(
        "save_sample_freq", "sample", INTEGER, None, "Keep every F-th state of the process.",
        {"lower_bound": 1}, never="interpolate export_dir",
    ),
    Flag(
        "out", "sample", PATH, None,
        "Where pictures go; by default additional_samples in --workdir.", never="export_dir",
    ),
    Flag(
        "export_dir", "sample", PATH, None,
        "Where to; an export that was interrupted is continued.",
    ),
    Flag(
        "num_samples", "sample", INTEGER, None, "Samples to write as single images.",
        {"lower_bound": 1}, only="export_dir", required="export_dir",
    ),
    Flag(
        "export", "sample", ENUM, "png",
        "npz: beside the single images one array, uint8 (N, H, W, C).",
        {"enum_values": ["png", "npz"]}, only="export_dir",
    ),
    Flag(
        "num_gen", "evaluate", INTEGER, None,
        "Samples to draw, by default 50000, or how many of --samples to score, by default all.",
        {"lower_bound": 1}, never="mode=elbo",
    ),
    Flag(
        "samples", "evaluate", STRING, None,
        "Score these instead: a folder or an .npz (arr_0) of images, read as the reference is.",
        never="mode=elbo mode=diversity",
    ),
    Flag(
        "dataset_split", "evaluate", STRING, None,
        "Split to compare with; by default test for elbo, train otherwise.", never=PIXELS,
    ),
    Flag(
        "num_images", "evaluate", INTEGER, None,
        "Images, spread over the split, 0 for all; by default config.eval.num_images.",
        {"lower_bound": 0}, only="mode=elbo",
    ),
    Flag(
        "num_levels_per_image", "evaluate", INTEGER, 10, "Levels drawn for each image.",
        {"lower_bound": 1}, only="mode=elbo", never="exact",
    ),
    Flag("exact", "evaluate", BOOL, False, "All levels for every image.", only="mode=elbo"),
    Flag(
        "dequantize", "evaluate", BOOL, True,
        "Add uniform noise to 8-bit values, which bits/dim need.", only="mode=elbo",
    ),
    Flag(
        "sweep", "evaluate", STRINGS, [],
        "No longer a flag: --delta, --steps, --checkpoint and --seed take lists themselves.",
        never="samples",
    ),
    Flag(
        "feature_extractor", "evaluate planted", ENUM, "inception", "What makes the features.",
        {"enum_values": EXTRACTORS}, only=FEATURES,
    ),
    Flag(
        "dataset_name_cleanfid", "evaluate", STRING, "",
        "Reference: clean-fid's name for it, an .npz or a folder; by default the config's data "
        "set.", only=FEATURES, never=CLASSIFIERS,
    ),
    Flag(
        "cleanfid_mode", "evaluate planted", ENUM, "clean", "As clean-fid's modes.",
        {"enum_values": ["clean", "legacy_tensorflow", "legacy_pytorch"]},
        only=FEATURES + " save_stats", never=OTHER_EXTRACTORS,
    ),
    Flag(
        "inception_path", "evaluate planted", STRING, "",
        "inception-2015-12-05.pt, or the folder that it is in.", only=FEATURES + " save_stats",
        never=OTHER_EXTRACTORS,
    ),
    Flag(
        "dinov2_path", "evaluate planted", PATH, None,
        "Weights of timm's vit_large_patch14_dinov2.lvd142m, a .safetensors file.",
        only="feature_extractor=dinov2",
    ),
    Flag(
        "k", "evaluate", INTEGER, 5, "Nearest neighbours; Kynkaanniemi et al. have 3.",
        {"lower_bound": 1}, only="mode=prdc mode=all",
    ),
    Flag(
        "out", "evaluate", PATH, None,
        "Where results go; by default runs/<dataset_name>/evaluation_results/<experiment_name>.",
    ),
    Flag(
        "dataset_name", "evaluate", STRING, None,
        "Folder of results below runs/; by default config.data.dataset.", never="out",
    ),
    Flag(
        "experiment_name", "evaluate", STRING, None,
        "Folder of results below that; by default --workdir's name.", never="out",
    ),
    Flag(
        "param_name", "evaluate", STRING, None,
        "Settings, with commas, or a label at the start of the log's lines; by default those "
        "swept, or delta.",
    ),
    Flag(
        "save_stats", "evaluate", BOOL, False,
        "Make clean-fid statistics of a folder of images, and nothing else.",
        alone="custom_name dataset_path cleanfid_mode inception_path batch_size",
    ),
    Flag(
        "custom_name", "evaluate", STRING, "", "Name of the statistics to make.", only="save_stats",
        required="save_stats",
    ),
    Flag(
        "dataset_path", "evaluate", PATH, None, "Folder of images to make them of.",
        only="save_stats", required="save_stats",
    ),
    Flag("out", "compare publish planted", PATH, None, "Directory to write to.", required=ALWAYS),
    Flag(
        "out", "pack", PATH, None,
        "Directory for the pack: a new one, an empty one, or a pack that was interrupted.",
        required=ALWAYS,
    ),
    Flag(
        "out", "data_sheet", PATH, "data.png", "New .png file for the picture.",
    ),
    Flag(
        "schedule", "data_sheet", PATH, None,
        "New .npy file for the schedule that is matched to the images.",
    ),
    Flag("scores", "compare", STRING, "", "Those to show, with commas; by default all."),
    Flag("license", "publish", STRING, "", "Of the weights, as on the card: mit, cc-by-4.0, ..."),
    Flag(
        "about", "publish", PATH, None,
        "A Markdown file for the card: what the model is, its data and how they are licensed.",
    ),
    Flag(
        "num_samples", "publish", INTEGER, 16, "Samples to draw for the card.", {"lower_bound": 0},
    ),
    Flag("out", "report", PATH, None, "The page to write; by default index.html in the run."),
    Flag("out", "export", PATH, None, "A .pt2 or .onnx file to write.", required=ALWAYS),
    Flag(
        "num_images", "calibrate", INTEGER, 48, "Training images, each seen once at every level.",
        {"lower_bound": 2},
    ),
    Flag(
        "seconds", "benchmark", FLOAT, 5.0, "Time to spend on each row at least.",
        {"lower_bound": 0.0},
    ),
    Flag("final_noise", "sample evaluate", STRING, None, NO_EFFECT),
    Flag("eval_folder", "sample evaluate", STRING, None, NO_EFFECT),
    Flag("skip_noise_starting_from", "sample evaluate", STRING, None, NO_EFFECT),
)  # fmt: skip
"""In the order of --help: the common ones first."""


def flags_of(command: str) -> list[Flag]:
    """The flags that a command takes."""
    return [flag for flag in FLAGS if command in flag.commands.split()]


def _conditions_on(conditions: str, names: Iterable[str]) -> list[str]:
    """Return the conditions about flags of these names."""
    return [text for text in conditions.split() if text.partition("=")[0] in names]


def _fulfilled(conditions: str, values: Mapping[str, Any]) -> list[str]:
    """Return the conditions that hold."""
    fulfilled = []
    for text in _conditions_on(conditions, values):
        name, equals, value = text.partition("=")
        holds = values[name] == value if equals else values[name]
        if holds:
            fulfilled.append(text)
    return fulfilled


def check(command: str, values: Mapping[str, Any], present: Collection[str]) -> None:
    """Raise UserError for a flag that is given where it means nothing, and for one that is missing.

    values: of all flags of the command; present: the flags that are given.
    """
    alone = [flag for flag in flags_of(command) if flag.alone and values[flag.name]]
    for flag in flags_of(command):
        useless = [one.name for one in alone if flag.name not in (one.name, *one.alone.split())]
        useless += _fulfilled(flag.never, values)
        if flag.name in present and useless:
            raise UserError(f"--{flag.name} has no meaning with --{useless[0]}: leave it out")
        only = _conditions_on(flag.only, values)
        if flag.name in present and only and not _fulfilled(flag.only, values):
            right = " or ".join(f"--{text}" for text in only)
            here = f"with --mode={values['mode']}, only with" if "mode=" in only[0] else "without"
            raise UserError(f"--{flag.name} has no meaning {here} {right}: leave it out")
    for flag in flags_of(command):
        if alone and flag.name not in alone[0].alone.split():
            continue
        required = flag.required == ALWAYS or _fulfilled(flag.required, values)
        excused = _fulfilled(flag.unless, values) + _fulfilled(flag.never, values)
        if required and not values[flag.name] and not excused:
            why = "" if flag.required == ALWAYS else f" with --{flag.required}"
            raise UserError(f"--{flag.name} is needed{why}: {flag.help.partition('. ')[0]}")


def help_text(command: str, about: str) -> str:
    """What --help prints: what the command does, and all its flags."""
    lines, names = [about.strip(), "", "Flags:"], {flag.name for flag in flags_of(command)}
    for flag in flags_of(command):
        text = flag.help
        lists = (("Only with", flag.only), ("Not with", flag.never), ("Goes only with", flag.alone))
        for words, conditions in lists:
            listed = [f"--{condition}" for condition in _conditions_on(conditions, names)]
            text += f" {words} {', '.join(listed)}." if listed else ""
        if flag.default not in (None, False, "", []):
            text += f" Default: {flag.default}."
        value = "|".join(flag.limits.get("enum_values", ())) or flag.kind
        start = f"  --[no]{flag.name}" if flag.kind == BOOL else f"  --{flag.name}={value}"
        indent = " " * 6
        lines += [start, *textwrap.wrap(text, 100, initial_indent=indent, subsequent_indent=indent)]
    return "\n".join(lines)


def parse(command: str, argv: Sequence[str], positional: str | None = None) -> Values:
    """Parse a command line, of which the first word is the program.

    Raises UserError and flags.Error. Arguments as of `run`.
    """
    parser = flags.FlagValues()
    parser.set_gnu_getopt()  # a value of --config.section.key may be a word of its own
    for flag in flags_of(command):
        DEFINE[flag.kind](
            name=flag.name,
            default=flag.default,
            help=flag.help,
            flag_values=parser,
            **flag.limits,
        )
    words = parser(argv, known_only=True)
    values = {flag.name: parser[flag.name].value for flag in flags_of(command)}
    present = {
        flag.name
        for flag in flags_of(command)
        # --nointerpolate is the default, and no more than that.
        if parser[flag.name].present and (values[flag.name] or flag.default is not False)
    }
    for flag in flags_of(command):
        text = values[flag.name]
        if flag.kind == PATH and text is not None:
            values[flag.name] = user_path(text, f"--{flag.name}") if text else None
    rest = _read_config(values, parser, words)[1:]
    if positional is not None and rest and positional not in present:
        if isinstance(values[positional], list):
            values[positional] = rest
            rest = []
        else:
            values[positional] = user_path(rest.pop(0), f"--{positional}")
    if rest:
        raise UserError(f"{rest[0]!r} is not a flag: options are written --name=value")
    ineffective = [name for name in present if parser[name].help == NO_EFFECT]
    if ineffective:
        listed = ", ".join(f"--{name}" for name in sorted(ineffective))
        warnings.warn(f"{listed}: no effect, as in the original release", stacklevel=2)
    check(command, values, present - set(ineffective))
    return Values(**values)


def _read_config(
    values: dict[str, Any], parser: flags.FlagValues, words: Sequence[str]
) -> list[str]:
    """Parse what is left of the command line: the configuration, and what it overrides there.

    In `values` the name of a file, by default the run's own, becomes the configuration. Returns the
    words that are no flags.
    """
    workdir = values.get("workdir")
    if values.get("config", "") is None and workdir and (workdir / RUN_CONFIG).is_file():
        values["config"] = str(workdir / RUN_CONFIG)
    if not values.get("config"):
        return parser(words)
    config = load(values["config"]).lock()
    keys = (re.match(r"--?(?:no)?config\.([^=]*)", word) for word in words)
    refuse_unknown(key[1] for key in keys if key)
    del parser.config
    config_flags.DEFINE_config_dict("config", config, flag_values=parser, sys_argv=[*words])
    rest = parser(words)
    if "model.process" in config_flags.get_override_values(parser["config"]):
        trusted_processes.add(config.model.process)
    values["config"] = config
    return rest


def run(command: str, main: Callable[[Values], int], positional: str | None = None) -> NoReturn:
    """Parse the command line and call `main` with the values of all flags for its exit code.

    A UserError becomes one line on stderr and exit code 2. command: a name in `Flag.commands`.
    positional: a flag that may be given by its value alone, or by its values if it takes many.
    """
    _keep_streams()
    warnings.formatwarning = lambda message, *_, **__: f"warning: {one_line(message)}\n"
    if {"--help", "-help", "-h", "-?", "--helpshort"} & set(sys.argv[1:]):
        print(help_text(command, sys.modules["__main__"].__doc__ or ""))
        sys.exit()
    try:
        sys.exit(main(parse(command, sys.argv, positional)))
    except Exception as error:
        line = str(error) if isinstance(error, flags.Error) else line_for(error)
        if line is None:
            raise
        fail(line)


class _Stream(io.FileIO):
    """Standard output or error; once it cannot be written to, all lines are dropped."""

    def write(self, data: Any) -> int:
        """Write bytes or drop them, with one warning on the other stream."""
        try:
            return super().write(data) or len(data)  # None: a full pipe that does not block
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            if self.fileno() == 1 and error.errno != errno.EPIPE:  # a reader has seen enough
                reason = f"standard output: {error.strerror}"
                print(f"warning: {reason}; continuing without it", file=sys.stderr)
            return len(data)


def _keep_streams() -> None:
    """Replace sys.stdout and sys.stderr by streams that raise no errors, even if closed."""
    while (free := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # no file may take the number of a closed stream, to which libraries write
    os.close(free)
    for number, name in ((1, "stdout"), (2, "stderr")):
        now = getattr(sys, name)
        encoding, errors = (now.encoding, now.errors) if now else ("utf-8", "backslashreplace")
        buffer = io.BufferedWriter(_Stream(number, "w", closefd=False))
        setattr(sys, name, io.TextIOWrapper(buffer, encoding, errors, line_buffering=True))


def fail(error: object) -> NoReturn:
    """Print one line and exit."""
    print(error_line(error), file=sys.stderr)
    sys.exit(USAGE_ERROR)
