"""model.blur_schedule: what a configuration may say, and what a checkpoint's levels allow."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

from model_code import build_process
from model_code.blur import DCTBlur, blur_schedule
from model_code.gaussian import GaussianProcess
from scripts.config.load import from_json, load, to_json
from scripts.config.release import log_levels
from scripts.config.resolve import config_warnings, resolve
from scripts.errors import one_line
from tests.config.test_config import release_file
from tests.conftest import bad_input
from tests.tiny import tiny_config

LEVELS = (0.0, 0.5, 0.9, 4.0)


def levels_of(config: ConfigDict, checkpoint: dict[str, Any] | None = None) -> list[float]:
    process = resolve(config, checkpoint, "it").process
    assert isinstance(process, GaussianProcess)
    assert isinstance(process.blur, DCTBlur)
    return process.blur.schedule.tolist()


def saved(config: ConfigDict) -> dict[str, Any]:
    """A checkpoint of a run with these levels."""
    return {"config": to_json(config), "sigma_B": torch.tensor(LEVELS, dtype=torch.float64)}


def given(schedule: object, **overrides: object) -> ConfigDict:
    config = tiny_config(**overrides)
    config.model.blur_schedule = schedule
    return config


def test_levels_may_be_numbers_or_a_file(tmp_path: Path) -> None:
    np.save(tmp_path / "levels.npy", np.array(LEVELS))
    for config in (given(LEVELS), given(str(tmp_path / "levels.npy"))):
        resolve(config)
        assert levels_of(config) == list(LEVELS)
        assert levels_of(from_json(to_json(config), "a checkpoint")) == list(LEVELS)
    np.testing.assert_allclose(log_levels(50, 0.5, 20.0), blur_schedule(50, 0.5, 20.0), rtol=1e-12)


@pytest.mark.parametrize("table", ["np.linspace(0, 24, 51)", "np.arange(51) ** 2"])
def test_a_table_of_any_shape_in_a_release_file(table: str, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="ignored"):
        config = load(release_file(tmp_path, f"model.blur_schedule = {table}"))
    resolve(config)
    assert levels_of(config)[2] == pytest.approx(48 / 50 if "24" in table else 4)


@pytest.mark.parametrize("table", ["np.array([0, 1, 2, 3])", "(0, 1.0, 2, 3)", "[0, 1, 2, 3]"])
def test_a_table_may_be_set_on_our_defaults(table: str, tmp_path: Path) -> None:
    lines = [
        "import numpy as np",
        "from configs import default",
        "def get_config():",
        "    config = default.get_config()",
    ]
    lines += [f"    config.model.K, config.model.blur_schedule = 3, {table}", "    return config"]
    (tmp_path / "own.py").write_text("\n".join(lines))
    assert levels_of(load(str(tmp_path / "own.py"))) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("linear", "'linear': must be 'log', 'matched', a .npy file or the K"),
        (
            0.5,
            r"0\.5: must be sigma_B\[0\.\.K\], with model\.K = 3 these are 4 numbers, 0 first, "
            "strictly increasing",
        ),
        ((0, 1, 2), "these are 4 numbers"),
        ((0, 1, 2, 2), "strictly increasing"),
        ((1, 2, 3, 4), "0 first"),
        ((0, 1, 2, float("inf")), "strictly increasing"),
        ((0, 1, 2, "a"), "strictly increasing"),
        (tuple(range(500)), r"these are 4 numbers.*int64 \(500,\)"),
    ],
)
def test_no_schedule(schedule: object, message: str) -> None:
    with bad_input(r"config\.model\.blur_schedule = .*" + message) as error:
        resolve(given(schedule))
    assert len(one_line(error.value)) < 300


def test_files_that_are_no_schedule(tmp_path: Path) -> None:
    path = tmp_path / "levels.npy"
    with bad_input(r"levels\.npy': cannot be read .*No such file"):
        resolve(given(str(path)))
    for contents in (np.zeros((2, 2)), np.array(["a"]), np.array([0, 1, 2, np.nan])):
        np.save(path, contents)
        with bad_input("strictly increasing"):
            resolve(given(str(path)))
    np.save(path, np.array([{}]), allow_pickle=True)
    with bad_input("cannot be read"):
        resolve(given(str(path)))


def test_matched_needs_two_ends_and_a_process_that_reads_it() -> None:
    resolve(given("matched"))
    with bad_input(
        r"blur_sigma_max = 0\.5: must be greater than config\.model\.blur_sigma_min = 0\.5",
    ):
        resolve(given("matched", model__blur_sigma_max=0.5))
    with pytest.raises(ValueError, match="its levels are not known here"):
        build_process(given("matched"))
    for name, blur in (("blurring_diffusion", 4.0), ("velocity_blurring_diffusion", 0.0)):
        config = given("matched", model__process=name, model__blur_sigma_max=blur)
        if blur > 0.5:
            with bad_input(
                r"'matched': process 'blurring_diffusion' has .* of its own; "
                "must be left at 'log'",
            ):
                resolve(config)
        with bad_input(r"must be left at 'log'"):
            resolve(given(LEVELS, model__process=name, model__blur_sigma_max=blur))
        resolve(given("log", model__process=name, model__blur_sigma_max=blur))
    assert config_warnings(given("matched")) == []


def test_a_checkpoint_decides(tmp_path: Path) -> None:
    """The levels that were trained are used without file or images; others are refused in a line
    that says which differ.
    """
    path = tmp_path / "levels.npy"
    np.save(path, np.array(LEVELS))
    other = (0.0, 0.5, 1.0, 4.0)
    for trained in (given(str(path)), given("matched"), given(LEVELS)):
        for asked in (trained, given(str(path)), given(LEVELS)):
            assert levels_of(asked, saved(trained)) == list(LEVELS)
        for refused in ("log", other):
            with bad_input(
                r"^it was made with another .*blur_schedule was .*, now "
                r".*sigma_B\[2\] was 0\.9, now",
            ):
                resolve(given(refused), saved(trained), "it")
    with bad_input(r"blur_schedule was 4 numbers, now 'matched'$"):
        resolve(given("matched"), saved(given(LEVELS)), "it")
    path.unlink()
    assert levels_of(given(str(path)), saved(given(str(path)))) == list(LEVELS)
    np.save(path, np.array(other))
    with bad_input(
        r"was '.*levels\.npy', now '.*levels\.npy' \(sigma_B\[2\] was 0\.9, now 1\)",
    ):
        resolve(given(str(path)), saved(given(str(path))), "it")


def test_a_checkpoint_of_an_earlier_version_is_log() -> None:
    config = tiny_config()
    text = to_json(config).replace('"blur_schedule": "log",', "")
    assert "blur_schedule" not in text
    checkpoint = {"config": text}
    assert resolve(config, checkpoint).levels is None
    listed = given(log_levels(3, 0.5, 4.0))
    assert levels_of(listed, checkpoint)[1:3] == pytest.approx([0.5, 2**0.5])
    with bad_input("blur_schedule was 'log', now 'matched'"):
        resolve(given("matched"), checkpoint)
