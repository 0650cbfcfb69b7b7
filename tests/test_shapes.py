"""Images that are no squares, and of other channels than one or three, through every command."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sample
from scripts.config.flags import parse
from scripts.config.load import load
from scripts.data.datasets import load_images, load_whole
from scripts.data.images import fingerprint
from scripts.data.packs import write_pack
from scripts.evaluation import command
from scripts.evaluation.results import Point
from scripts.sampling.output import as_colours, grid
from scripts.sampling.sampler import load_sampler
from scripts.training.loop import train
from tests.conftest import bad_input
from tests.evaluation.evaluations import of_bound, of_samples
from tests.images import save_waves
from tests.tiny import tiny_config
from tests.training.runs import TinyRun, differing

SETTINGS: dict[str, Any] = {
    "data__image_size": (8, 12), "model__channel_mult": (1, 1), "model__attention_levels": (),
    "eval__num_images": 4, "training__noise_images": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def array(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty waves of 8 x 12 pixels."""
    return save_waves(tmp_path_factory.mktemp("array") / "waves.npy", 8, 12)


@pytest.fixture(scope="module")
def run(array: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Interrupted, and finished."""
    run = TinyRun(array, tmp_path_factory.mktemp("run"))
    run.interrupt(2, **SETTINGS)
    run.finish(**SETTINGS)
    return run


def test_a_rectangle_resumes_bit_for_bit(run: TinyRun, array: Path, tmp_path: Path) -> None:
    undisturbed = TinyRun(array, tmp_path / "run")
    undisturbed.finish(**SETTINGS)
    assert differing(run.state(), undisturbed.state()) == []
    assert load(str(run.workdir / "config.json")).data.image_size == (8, 12)


def test_a_rectangle_is_sampled_in_four_ways_and_exported(run: TinyRun, tmp_path: Path) -> None:
    for kind in ("", "--same_init", "--share_noise", "--interpolate"):
        out = tmp_path / (kind or "independent")
        size = "--num_points=3" if kind == "--interpolate" else "--batch_size=2"
        words = [kind, size, f"--workdir={run.workdir}", f"--out={out}"]
        assert sample.draw(parse("sample", ["sample.py", *filter(None, words)])) == 0
    (final,) = (tmp_path / "independent").rglob("final.npy")
    assert np.load(final).shape == (2, 1, 8, 12)
    with Image.open(final.with_name("final.png")) as picture:
        assert picture.size == (2 * 12 * 8 + 12, 8 * 8 + 8)
    export = [f"--export_dir={tmp_path / 'export'}", "--num_samples=3", "--export=npz"]
    words = ["sample.py", f"--workdir={run.workdir}", *export]
    assert sample.draw(parse("sample", words)) == 0
    pixels = np.load(tmp_path / "export" / "samples_3x8x12x1.npz")["arr_0"]
    with Image.open(tmp_path / "export" / "000002.png") as image:
        np.testing.assert_array_equal(np.asarray(image), pixels[2, :, :, 0])


def test_bound_and_spectrum_of_a_rectangle(run: TinyRun) -> None:
    config = load(str(run.workdir / "config.json"))
    nats, bits = of_bound(run.workdir, config, num_images=4)(Point(checkpoint=0, seed=0))
    dimensions = 8 * 12 * np.log(2)
    assert bits.estimate.value == pytest.approx(nats.estimate.value / dimensions + 8, rel=1e-5)
    results = of_samples(run.workdir, config, "spectrum", num_gen=6)(Point(checkpoint=0, seed=0))
    assert all(np.isfinite(result.estimate.value) for result in results)


def test_a_pack_of_rectangles_is_the_same_data_set(array: Path, tmp_path: Path) -> None:
    """With its fit, which no other may take for its own; earlier versions' are crops."""
    data = tiny_config(data__dataset="npy", data__path=str(array), data__image_size=(8, 8)).data
    data.fit = "pad"
    plain = load_images(data, "train")
    write_pack(tmp_path / "pack", data, load_whole(data))
    data.path = str(tmp_path / "pack")
    packed = load_images(data, "train")
    assert fingerprint(packed) == fingerprint(plain)
    data.fit = "crop"
    with bad_input(r"is a pack with data\.fit = 'pad', not 'crop'"):
        load_images(data, "train")
    description = tmp_path / "pack" / "packed_images.json"
    description.write_text(description.read_text().replace('"fit": "pad", ', ""))
    load_images(data, "train")
    data.image_size = (8, 12)
    with bad_input(r"data.image_size = 8, not \[8, 12\]"):
        load_images(data, "train")


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_other_channels_are_trained_on_sampled_and_exported(
    channels: int, array: Path, tmp_path: Path
) -> None:
    pixels = np.stack([np.roll(np.load(array), i, 2) for i in range(channels)], 3)
    np.save(tmp_path / "channels.npy", pixels)
    steps = {"training__n_iters": 2, "data__num_channels": channels}
    place = {"data__dataset": "npy", "data__path": str(tmp_path / "channels.npy")}
    config = tiny_config(**SETTINGS, **steps, **place)
    assert train(config, tmp_path / "run") == 0
    sampler, trained = load_sampler(tmp_path / "run")
    state = trained.calibration()
    assert state is not None
    assert "planes" not in state
    assert sampler.independent([0]).shape == (1, channels, 8, 12)
    out = tmp_path / "export"
    words = [f"--workdir={tmp_path / 'run'}", f"--export_dir={out}", "--num_samples=2"]
    assert sample.draw(parse("sample", ["sample.py", *words, "--export=npz"])) == 0
    array_of_all = np.load(out / f"samples_2x8x12x{channels}.npz")["arr_0"]
    found = (sampler.independent([0, 1]).clamp(0, 1) * 255).round().byte()
    np.testing.assert_array_equal(array_of_all, found.permute(0, 2, 3, 1))
    words = ["evaluate.py", f"--workdir={tmp_path / 'run'}", "--mode=fid", "--num_gen=4"]
    message = f"sees grey or RGB, and config.data.num_channels = {channels}; choose --mode=spectrum"
    with bad_input(message):
        command.evaluate(parse("evaluate", [*words, f"--out={tmp_path / 'fid'}"]))


@pytest.mark.parametrize(
    ("channels", "colours", "columns"), [(1, 1, 1), (2, 1, 2), (3, 3, 1), (4, 3, 2), (6, 1, 6)]
)
def test_pictures_of_any_channels(channels: int, colours: int, columns: int) -> None:
    images = torch.rand(3, channels, 4, 6)
    shown = as_colours(images)
    assert shown.shape == (3, colours, 4, 6 * columns + columns - 1)
    assert grid(images).shape[2] == 3
    if channels == 4:
        torch.testing.assert_close(shown[..., :6], images[:, :3])
        torch.testing.assert_close(shown[..., 7:], images[:, 3:].expand(-1, 3, -1, -1))
    if colours == 1:
        for i in range(channels):
            torch.testing.assert_close(shown[:, 0, :, 7 * i : 7 * i + 6], images[:, i])
