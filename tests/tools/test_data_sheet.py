"""What the tool says about fields whose spectra are known, and what it writes."""

import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from PIL import Image
from scipy.fft import idctn

from model_code.blur import blur_schedule
from model_code.schedule import removed_variance
from model_code.spectrum import DCTMoments, radii_of
from scripts.config.resolve import resolve
from scripts.tools import data_sheet
from scripts.tools.data_sheet import schedules_for, slope
from tests.conftest import bad_input, command, error_line
from tests.images import random_images
from tests.tiny import tiny_config

CONFIG = ("--config=configs/mnist/quickstart.py", "--config.data.dataset=npy")


def field(exponent: float, count: int, size: int) -> torch.Tensor:
    """Gaussian images (count, 1, size, size) whose power falls as radius^exponent, and is 0 for the
    constant.
    """
    radii = radii_of(size, size).numpy()
    amplitude = np.where(radii > 0, np.maximum(radii, 1) ** (exponent / 2), 0)
    noise = np.random.default_rng(0).standard_normal((count, 1, size, size))
    return torch.from_numpy(idctn(noise * amplitude, axes=(2, 3), norm="ortho"))


def tool(*arguments: object) -> subprocess.CompletedProcess[str]:
    return command("-m", "scripts.tools.data_sheet", *CONFIG, *arguments)


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 images of 28 x 28 with power 1 / radius^2."""
    images = field(-2.0, 400, 28)[:, 0].numpy()
    path = tmp_path_factory.mktemp("fields") / "fields.npy"
    np.save(path, np.clip(128 + 40 * images / images.std(), 0, 255).astype(np.uint8))
    return path


@pytest.mark.parametrize("size", [28, 64, 256])
@pytest.mark.parametrize("exponent", [0.0, -2.0, -3.0])
def test_slope_of_a_field(exponent: float, size: int) -> None:
    moments = DCTMoments(1, size, size)
    moments.add(field(exponent, 100, size))
    assert slope(moments.variance[0]) == pytest.approx(exponent, abs=0.05)


def test_tables_a_schedule_and_a_picture(
    fields: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Matplotlib, which cannot keep its cache, says nothing in our place."""
    out, sheet = tmp_path / "new" / "schedule.npy", tmp_path / "new" / "sheet.png"
    monkeypatch.setenv("MPLCONFIGDIR", "/dev/null/no_directory")
    words = [f"--config.data.path={fields}", f"--out={sheet}", f"--schedule={out}"]
    done = tool(*words, "--config.model.K=12")
    assert (done.returncode, done.stderr) == (0, "")
    assert "64 of 400 images looked at: uint8 28 x 28 pixels" in done.stdout
    assert (
        "spectrum of 360 images: power ~ radius^-2.0" in done.stdout or "radius^-1.9" in done.stdout
    )
    log, matched = re.findall(r"^(?:log|matched) +([0-9.]+)$", done.stdout, re.MULTILINE)
    assert float(log) > 1.5
    assert float(matched) < 1.01
    schedule = np.load(out)
    assert (schedule[0], schedule[1], schedule[-1], schedule.shape) == (0, 0.5, 20, (13,))
    resolve(tiny_config(model__K=12, model__blur_schedule=str(out)))
    power = torch.where(radii_of(28, 28) > 0, radii_of(28, 28).clamp(min=1) ** -2, 0)
    found, evenly = (
        removed_variance(s, power)[1:]
        for s in (torch.from_numpy(schedule), blur_schedule(12, 0.5, 20.0))
    )
    assert found.max() / found.min() < 1.3 < evenly.max() / evenly.min(), (
        "of the true spectrum, which 360 images show to some percent"
    )
    with Image.open(sheet) as picture:
        assert picture.width > 1000
    assert "--out" in (line := error_line(tool(*words)))
    assert "must be a new file" in line


def call(config: ConfigDict, out: Path, schedule: Path | None = None) -> None:
    """The command in this process."""
    assert data_sheet.main(SimpleNamespace(config=config, out=out, schedule=schedule)) == 0


def test_shares_of_octaves_and_of_the_last_blur(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All variance in one frequency: its octave has it all, and blur leaves exp(-lambda sigma_B^2)
    of it.
    """
    coefficients = np.zeros((100, 32, 32))
    coefficients[:, 0, 5] = np.where(np.arange(100) % 2, 700, -700)
    np.save(
        tmp_path / "waves.npy",
        np.rint(128 + idctn(coefficients, axes=(1, 2), norm="ortho")).astype(np.uint8),
    )
    config = tiny_config(
        data__dataset="npy", data__path=str(tmp_path / "waves.npy"), data__image_size=32, model__K=2
    )
    call(config, tmp_path / "data.png")
    printed = capsys.readouterr().out
    assert "    8 to 16              100.00%" in printed or "99.9" in printed
    kept = np.exp(-((np.pi * 5 / 32) ** 2) * (32 / 8) ** 2)
    assert f"     4  W / 8       {kept:>12.2%}" in printed


def test_the_configurations_own_schedule() -> None:
    """Numbers are a third schedule; a name that is compared anyway is there once."""
    moments, own = DCTMoments(1, 8, 8), [0, 0.5, 1.0, 4.0]
    moments.add(random_images(20, 1, 8, 8))
    schedules = schedules_for(tiny_config(model__blur_schedule=own), moments)
    assert (list(schedules), schedules["configured"].tolist()) == (
        ["log", "matched", "configured"],
        own,
    )
    assert list(schedules_for(tiny_config(), moments)) == ["log", "matched"]


def test_images_that_are_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As of a folder of scans that were read as black: there is no spectrum, but a picture and a
    warning; and so for a process without blur.
    """
    pixels = np.zeros((30, 8, 8), np.uint8)
    for name, process in (("black", "heat"), ("nearly", "gaussian_diffusion")):
        np.save(tmp_path / f"{name}.npy", pixels)
        place = {"data__dataset": "npy", "data__path": str(tmp_path / f"{name}.npy")}
        call(tiny_config(**place, model__process=process), tmp_path / f"{name}.png")
        printed = capsys.readouterr()
        assert ("all 54 images are alike" in printed.out) == (name == "black")
        assert ("less than config.model.sigma = 0.01" in printed.err) == (name == "black")
        assert (tmp_path / f"{name}.png").exists()
        pixels[::2, 4:] = 1


@pytest.mark.parametrize(
    ("changes", "out", "schedule", "message"),
    [
        ({}, "sheet.txt", None, r"--out=sheet\.txt: must be a new file, such as data\.png"),
        ({}, "s.png", "s.txt", r"--schedule=s\.txt: must be a new file, such as data\.npy"),
        (
            {"model__blur_sigma_max": 0.5},
            "s.png",
            "s.npy",
            r"config\.model\.blur_sigma_max = 0\.5: must be greater than",
        ),
        ({"data__path": "not/there.npy"}, "s.png", None, "cannot be used"),
    ],
)
def test_bad_input(
    changes: dict[str, Any], out: str, schedule: str | None, message: str, fields: Path
) -> None:
    config = tiny_config(**{"data__dataset": "npy", "data__path": str(fields), **changes})
    with bad_input(message):
        call(config, Path(out), None if schedule is None else Path(schedule))
