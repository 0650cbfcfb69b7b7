"""Checkpoints: state dicts and plain data only, written atomically, read without running anything
in them.

A run directory holds `checkpoints-meta/checkpoint.pth`, from which a restart continues, its
predecessor as `checkpoint_previous.pth`, and numbered ones, `checkpoints/checkpoint_n.pth`. A file
holds `step`, `config` (JSON), `ema`, and

- to continue training: `model`, `optimizer`, `scaler`, `data`; of these numbered checkpoints have
  `data` alone, see `for_sampling`
- to sample without the training images: `prior`, the process's prior states, `calibration`, what
  reverse kernels are made from, and `sigma_B`, the blur levels, float64 (K + 1,), unless they are
  spaced evenly in log
- for the record: `precision` of the training, `provenance`

A published model is read as one, see `published.py`.
"""

import contextlib
import json
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import nn

from model_code.prior import Prior
from model_code.process import CalibrationState
from scripts.config.load import flatten, from_json
from scripts.config.resolve import FREE_IN_INFERENCE, Experiment, resolve
from scripts.errors import UserError, one_line
from scripts.storage.files import atomic_write, sync
from scripts.storage.published import PROCESS, WEIGHTS, read_published, tensors_crc32

FORMAT = "ihdm-1"
REQUIRED = {"step", "config", "ema"}
REQUIRED_TO_RESUME = {"model", "optimizer", "scaler", "data", "prior"}
FOR_SAMPLING = [
    "step",
    "config",
    "sigma_B",
    "data",
    "prior",
    "classes",
    "calibration",
    "precision",
    "provenance",
]
"""Parts of a checkpoint that a small one has besides the averages."""
Contents = dict[str, Any]

# The release's optimizer state holds its learning rate as a NumPy scalar. These only rebuild
# numbers; older files name them by NumPy 1's module path.
_scalar = np.float64(0).__reduce__()[0]
_NUMPY_SCALARS: list[Any] = [
    (_scalar, "numpy._core.multiarray.scalar"),
    (_scalar, "numpy.core.multiarray.scalar"),
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
    np.dtypes.Int64DType,
]


def meta_path(workdir: Path) -> Path:
    """Where a restart continues from."""
    return workdir / "checkpoints-meta" / "checkpoint.pth"


def numbered_path(workdir: Path, number: int) -> Path:
    """The number-th snapshot of a run, from 1."""
    return workdir / "checkpoints" / f"checkpoint_{number}.pth"


def calibration_path(path: Path) -> Path:
    """Where `scripts.tools.calibrate` writes the calibration of a checkpoint."""
    return path.with_suffix(".calibration.pth")


def earlier_calibration_path(path: Path) -> Path:
    """Where earlier versions wrote it."""
    return path.with_suffix(".noise.pth")


def weights_crc32(contents: Contents) -> int:
    """A number that tells one set of averaged weights from another."""
    return tensors_crc32(contents["ema"]["shadow"].values())


def previous_path(workdir: Path) -> Path:
    """The one before `meta_path`, in case that is unreadable."""
    return workdir / "checkpoints-meta" / "checkpoint_previous.pth"


def write(path: Path, contents: Contents, previous: Path | None = None) -> None:
    """Write a checkpoint; rename the old one to `previous`, if that is not None. Raises UserError
    if it cannot be written whole.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            torch.save({"format": FORMAT, **contents}, temporary)
            if previous is not None and path.exists():
                sync(temporary)  # nothing moves before the new one is safe
                path.replace(previous)
    # PyTorch's zip writer reports a full disk as RuntimeError.
    except (OSError, RuntimeError) as error:
        what = f"the checkpoint could not be written (is the disk full? {error})"
        raise UserError(f"{path}: {what}; earlier ones are intact") from None


def write_meta(workdir: Path, contents: Contents) -> None:
    """Write the checkpoint that a restart continues from, and keep the one before it."""
    write(meta_path(workdir), contents, previous_path(workdir))


def read(path: Path) -> Contents:
    """Read a checkpoint of ours or of the release onto the CPU; the release's has no "config".

    Raises UserError if it is missing, damaged or foreign.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such checkpoint")
    if path.suffix == ".safetensors":
        contents, crc32 = read_published(path)
        if weights_crc32(contents) != crc32:
            other = f"these weights are not those that {PROCESS} beside it belongs to"
            raise UserError(f"{path}: {other}")
        return contents
    contents = _load(path)
    keys = contents.keys() if isinstance(contents, dict) else set()
    release = keys >= {"step", "ema", "model"} and "shadow_params" in contents["ema"]
    if release:
        # It keeps averages as a list, in the order in which parameters were registered.
        names = [name.removeprefix("module.") for name in contents["model"]]
        averages = zip(names, contents["ema"]["shadow_params"], strict=False)
        contents["ema"] = {"shadow": dict(averages)}
    elif not (keys >= REQUIRED and contents.get("format") == FORMAT):
        raise UserError(f"{path}: not a checkpoint of this program or of the original release")
    for name, value in flatten({key: contents.get(key) for key in ("ema", "model", "optimizer")}):
        if isinstance(value, torch.Tensor) and not value.isfinite().all():
            raise UserError(f"{path}: {name} holds NaN or infinity; use an earlier checkpoint")
    if "noise" in contents:  # the key of earlier versions
        contents["calibration"] = contents.pop("noise")
    return contents


def _load(path: Path) -> Any:
    """torch.load of plain tensors and numbers, with checksums compared.

    Raises UserError for anything else.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():  # torch does not compare checksums itself
                    raise ValueError(f"checksum of {damaged}")
        with torch.serialization.safe_globals(_NUMPY_SCALARS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols of old files
            return torch.load(path, map_location="cpu", weights_only=True)
    # zipfile, pickle, PyTorch and their C++ parts each have their own ways to say "damaged".
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]
        what = "damaged, or not a checkpoint of plain tensors and numbers only"
        raise UserError(f"{path}: {what} ({reason})") from None


def existing(workdir: Path) -> list[Path]:
    """The checkpoints of a run, the newest first; of a published model its weights; or a file."""
    if workdir.is_file():
        return [workdir]
    numbered = [numbered_path(workdir, number) for number in reversed(numbers(workdir))]
    paths = (meta_path(workdir), previous_path(workdir), *numbered, workdir / WEIGHTS)
    return [path for path in paths if path.is_file()]


def read_newest(workdir: Path) -> tuple[Path, Contents] | None:
    """The newest checkpoint that can be read, with a warning for each newer one; None if there are
    none.

    In this order: the one that a restart continues from, its predecessor, numbered ones from the
    highest down. Raises UserError if none of several can be read.
    """
    paths = existing(workdir)
    for path in paths:
        try:
            return path, read(path)
        except UserError as error:
            if path == paths[-1]:
                raise
            warnings.warn(f"{error}; using the one before it", stacklevel=2)
    return None


def read_to_resume(workdir: Path) -> Contents | None:
    """As `read_newest`, for a run that continues.

    Raises UserError for the release's and published checkpoints.
    """
    path, contents = read_newest(workdir) or (None, None)
    if contents and (missing := REQUIRED_TO_RESUME - contents.keys()):
        listed = ", ".join(sorted(missing))
        lacks = f"can be sampled from, but not trained further, as it has no {listed}"
        start = f"start there from these weights with --config.training.init_from={path}"
        raise UserError(f"{path}: {lacks}; choose another --workdir, and {start}")
    return contents


def numbers(workdir: Path) -> list[int]:
    """Of the numbered checkpoints of a run, ascending."""
    paths = (workdir / "checkpoints").glob("checkpoint_*.pth")
    stems = [path.stem.removeprefix("checkpoint_") for path in paths]
    return sorted(int(number) for number in stems if number.isdecimal())


@dataclass(frozen=True)
class TrainedModel:
    """What sampling and evaluation need of a checkpoint; the release's have no prior."""

    model: nn.Module
    """With EMA weights, in eval mode, on the CPU."""
    experiment: Experiment
    """With the checkpoint's blur levels."""
    prior: Prior | None
    dequantized: bool
    """Whether the prior is of dequantised images."""
    step: int
    weights_crc32: int
    path: Path
    saved_calibration: CalibrationState
    """The calibration in the checkpoint itself."""
    classes: Mapping[str, int]
    """How many training images each class had, by the names of classes that the network is told, in
    their order; or empty."""
    data: Mapping[str, int]
    """`fingerprint` of the images that it was trained on, and of those held out; or empty."""

    def calibration(self) -> CalibrationState:
        """The newest calibration, see `read_calibration`."""
        return read_calibration(self.path, self.saved_calibration, self.step, self.weights_crc32)

    def write_calibration(self, calibration: Mapping[str, torch.Tensor]) -> Path:
        """Write a calibration beside the checkpoint, with step and weights; return the file."""
        file = calibration_path(self.path)
        with atomic_write(file) as temporary:
            weights = {"step": self.step, "weights_crc32": self.weights_crc32}
            torch.save(weights | {"calibration": dict(calibration)}, temporary)
        return file


def read_calibration(
    path: Path, saved: CalibrationState, step: int, weights_crc32: int
) -> CalibrationState:
    """The calibration of the checkpoint at `path`: the one beside it, or else `saved` in it; None
    if there is neither.

    Raises UserError where there is only one of other weights beside it, as the run continued.
    """
    file = calibration_path(path)
    if not file.is_file():
        file = earlier_calibration_path(path)
    if not file.is_file():
        return saved
    measured = _load(file)
    if measured.get("weights_crc32") == weights_crc32:
        return measured["calibration"] if "calibration" in measured else measured["measured"]
    if saved is not None:
        return saved
    then = f"measured with the weights of step {measured.get('step', 'unknown')}"
    advice = "run python -m scripts.tools.calibrate again"
    raise UserError(f"{file}: {then}, where {path.name} is of step {step}; {advice}")


def load_trained(config: ConfigDict | None, workdir: Path | str, checkpoint: int) -> TrainedModel:
    """Checkpoint number `checkpoint` of a run, 0 for the newest; config None: the checkpoint's own.

    Raises UserError if it is missing or does not fit `config`.
    """
    path, contents = _find(Path(workdir), checkpoint)
    config = _config_in(contents, path) if config is None else config
    experiment = resolve(config, contents, str(path), FREE_IN_INFERENCE)
    prior = None
    if "prior" in contents:
        try:
            prior = experiment.process.prior_from_state(contents["prior"])
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None
    load_averages(experiment.network, path, contents)
    dequantized = config.data.uniform_dequantization
    if "config" in contents:
        dequantized = json.loads(contents["config"])["data"]["uniform_dequantization"]
    return TrainedModel(
        model=experiment.network.eval(),
        experiment=experiment,
        prior=prior,
        dequantized=dequantized,
        step=contents["step"],
        weights_crc32=weights_crc32(contents),
        path=path,
        saved_calibration=contents.get("calibration"),
        classes=contents.get("classes", {}),
        data=contents.get("data", {}),
    )


def saved_config(workdir: Path, checkpoint: int) -> ConfigDict:
    """The configuration in a checkpoint. Raises UserError for the release's, which have none."""
    path, contents = _find(workdir, checkpoint)
    return _config_in(contents, path)


def _config_in(contents: Contents, path: Path) -> ConfigDict:
    if "config" not in contents:
        what = "the release's checkpoints have no configuration"
        raise UserError(f"{path}: {what}; name its file with --config")
    return from_json(contents["config"], str(path)).lock()


def run_directory(workdir: Path) -> Path:
    """Where to put what is made with a run: its directory, or beside a checkpoint's file one of
    that name.
    """
    return workdir.with_suffix("") if workdir.is_file() else workdir


def _find(workdir: Path, checkpoint: int) -> tuple[Path, Contents]:
    if workdir.is_file() and checkpoint > 0:
        raise UserError(f"--checkpoint={checkpoint}: must be 0, as --workdir={workdir} is one")
    path = numbered_path(workdir, checkpoint)
    if checkpoint > 0 and not path.is_file():
        there = ", ".join(map(str, numbers(workdir))) or "none"
        missing = f"{workdir} has no {path.relative_to(workdir)}; there are {there}"
        raise UserError(f"--checkpoint={checkpoint}: {missing}")
    if checkpoint > 0:
        return path, read(path)
    newest = read_newest(workdir)
    if newest is None:
        missing = "there is no checkpoint in it; train first, or check the path"
        raise UserError(f"--workdir={workdir}: {missing}")
    return newest


def load_averages(model: nn.Module, path: Path, contents: Contents) -> None:
    """Make the averages the weights of a model, which may be on the meta device. Raises UserError
    if they do not fit.
    """
    try:
        model.load_state_dict(contents["ema"]["shadow"], strict=True, assign=True)
    except RuntimeError as error:
        reason = one_line(error).partition(": ")[2][:400]
        what = "holds another architecture than this configuration"
        raise UserError(f"{path} {what}: {reason}") from None


def for_sampling(contents: Contents) -> Contents:
    """What sampling and evaluation need of a checkpoint: a quarter of it, as weights and Adam's two
    moments go.
    """
    small = {name: contents[name] for name in FOR_SAMPLING if name in contents}
    if "data" in small:  # checksums of single names would let others test whose images they were
        small["data"] = {key: n for key, n in small["data"].items() if isinstance(n, int)}
    # Without the count of updates, which only training needs.
    return small | {"ema": {"shadow": contents["ema"]["shadow"]}}


def free_number(workdir: Path, usual: int, step: int) -> Path:
    """Where the snapshot of `step` goes: to number `usual`, or behind all others if those go
    further.

    That happens to a run that continues with another snapshot_freq or n_iters. A step that is done
    again has its own number.
    """
    steps = _steps(workdir)
    own = [number for number, found in steps.items() if found == step]
    return numbered_path(workdir, own[0] if own else max(usual, max(steps, default=0) + 1))


def delete_all_but(workdir: Path, keep: int) -> None:
    """Delete snapshots but those of the last `keep` steps, with what was measured for them later.

    0 keeps all.
    """
    steps = {number: step for number, step in _steps(workdir).items() if step is not None}
    for number in sorted(steps, key=lambda number: steps[number])[: -keep or 0]:
        path = numbered_path(workdir, number)
        for file in (path, calibration_path(path), earlier_calibration_path(path)):
            file.unlink(missing_ok=True)


def _steps(workdir: Path) -> dict[int, int | None]:
    """The step of each snapshot by its number, without reading tensors; None for one that cannot be
    read.
    """
    steps: dict[int, int | None] = dict.fromkeys(numbers(workdir))
    for number in steps:
        path = numbered_path(workdir, number)
        with contextlib.suppress(Exception):
            contents = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            steps[number] = int(contents["step"])
    return steps
