"""Samples are functions of (seed, index), and the four kinds share what they say they share."""

import fcntl
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from model_code import build_model, build_process
from model_code.blur import DCTBlur, blur_schedule
from model_code.gaussian import GaussianProcess
from model_code.presets import heat_dissipation
from scripts.config.resolve import resolve
from scripts.data.images import ArrayImages
from scripts.data.loader import OrderedBatches
from scripts.runtime import progress
from scripts.runtime.device import Precision
from scripts.sampling.calibration import calibrate
from scripts.sampling.choice import NAMES, Choice, parse_number, parse_steps
from scripts.sampling.export import export
from scripts.sampling.output import (
    frame_levels,
    interpolation_set,
    own_directory,
    sample_set,
    save_mp4,
)
from scripts.sampling.reverse import (
    BLOCK,
    SAMPLERS,
    IndependentNoise,
    SphericalNoise,
    linear_path,
    reverse_process,
)
from scripts.sampling.sampler import Sampler, data_prior, make_sampler
from tests.conftest import bad_input
from tests.golden import fill_golden
from tests.images import random_pixels
from tests.model_code.test_gaussian import make
from tests.tiny import tiny_config

PIXELS = random_pixels(30, 1, 8, 8)
SOURCE = ArrayImages(PIXELS[:, 0])
CPU = torch.device("cpu")
INTERPOLATION = {"init_input.png", "base_sample.png", "interpolation.png", "process.mp4"}
FLOAT32 = Precision.named(CPU, "float32")


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    experiment = resolve(tiny_config())
    model = build_model(experiment.config).eval()
    fill_golden(model)
    prior = experiment.process.build_prior([torch.from_numpy(PIXELS) / 255])
    return make_sampler(experiment, model, prior, FLOAT32, None, choice=Choice(0.05), seed=1)


def test_reverse_process_with_an_exact_model() -> None:
    """A model that removes what it is told to: the result is a sum that can be written down."""
    u_K = torch.full((2, 1, 4, 4), 10.0)
    blur = DCTBlur(blur_schedule(3, 0.5, 2.0), 4, 4)
    process = heat_dissipation(blur, 0.01, num_channels=1)
    seen: list[tuple[int, float]] = []
    result = reverse_process(
        process,
        lambda u, k: -k.float()[:, None, None, None].expand_as(u),
        u_K,
        process.reverse_kernel(0.5),
        lambda k: torch.full_like(u_K, float(k)),
        lambda k, u: seen.append((k, u[0, 0, 0, 0].item())),
    )
    # 10 - 3 + 0.5 * 3 = 8.5; 8.5 - 2 + 0.5 * 2 = 7.5; 7.5 - 1 = 6.5, without the noise of k = 1
    assert seen == [(2, 8.5), (1, 7.5), (0, 6.5)]
    assert torch.equal(result, torch.full_like(u_K, 6.5))


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_gradients_reach_the_initial_state(name: str) -> None:
    """They are those of finite differences."""
    process = make("flow")
    kernel = process.reverse_kernel(chain=(40, 20, 0))
    noise = torch.randn(1, *process.shape, generator=torch.Generator().manual_seed(1))
    direction = torch.ones_like(noise)

    def end(u_K: torch.Tensor) -> torch.Tensor:
        sampler: Any = SAMPLERS[name]
        last = sampler(process, lambda u, k: (u**2).tanh(), u_K, kernel, lambda k: noise)
        return last.double().sum()

    u_K = noise.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(end(u_K), u_K)
    step = 1e-2
    difference = (end(noise + step * direction) - end(noise - step * direction)) / (2 * step)
    assert gradient.sum().item() == pytest.approx(difference.item(), rel=1e-2)
    assert gradient.abs().min() > 0


def test_a_sample_does_not_depend_on_its_batch(sampler: Sampler) -> None:
    together = sampler.independent(range(6))
    for index in (0, 3, 5):
        torch.testing.assert_close(
            sampler.independent([index])[0], together[index], atol=1e-4, rtol=0
        )
    torch.testing.assert_close(sampler.independent([5, 2]), together[[5, 2]], atol=1e-4, rtol=0)
    assert not torch.allclose(replace(sampler, seed=2).independent([0]), together[:1], atol=0.01)


def states(sampler: Sampler, kind: str, count: int) -> dict[int, torch.Tensor]:
    seen: dict[int, torch.Tensor] = {}
    getattr(sampler, kind)(range(count), lambda k, u: seen.update({k: u.clone()}))
    assert sorted(seen) == list(range(sampler.num_steps + 1))
    return seen


def test_same_init(sampler: Sampler) -> None:
    """One initial state, noise included; then each sample its own noise. The first is an ordinary
    sample.
    """
    seen = states(sampler, "same_init", 3)
    assert torch.equal(seen[3][0], seen[3][2])
    assert not torch.allclose(seen[2][0], seen[2][2], atol=1e-3)
    torch.testing.assert_close(seen[0][:1], sampler.independent([0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "choice", [Choice(0.0), Choice("calibrated", steps="1"), Choice("calibrated", steps="1:bound")]
)
def test_same_init_without_noise_on_the_way(choice: Choice, sampler: Sampler) -> None:
    """All samples would be the same."""
    measured = measured_kernels(sampler)
    still = make_sampler(
        resolve(tiny_config()), sampler.model, sampler.prior, FLOAT32, measured, choice=choice
    )
    with bad_input(f"--same_init: no noise is drawn on the way .delta {still.label}; see .*alike"):
        still.same_init([0, 1])


def test_share_noise(sampler: Sampler) -> None:
    """Different prior means; without the model's doing, all states of the process differ by just
    that.
    """
    still = replace(sampler, model=lambda u, k: torch.zeros_like(u))
    seen = states(still, "share_noise", 3)
    assert not torch.allclose(seen[3][0], seen[3][1], atol=1e-3)
    for k in (2, 1, 0):
        torch.testing.assert_close(
            seen[k][0] - seen[k][1], seen[3][0] - seen[3][1], atol=1e-5, rtol=0
        )


def test_interpolation_ends_at_ordinary_samples(sampler: Sampler) -> None:
    points = sampler.interpolate((2, 3), 7)
    torch.testing.assert_close(points[[0, -1]], sampler.independent([2, 3]), atol=1e-4, rtol=0)
    path = SphericalNoise(0, (0, 1), (1, 100, 100), 5, CPU)
    np.testing.assert_allclose(path(1).std((1, 2, 3)), 1, atol=0.03)  # standard normal everywhere
    assert torch.equal(path(1)[[0, -1]], path.ends(1))
    np.testing.assert_allclose(
        linear_path(torch.tensor([[[[0.0]]], [[[1.0]]]]), 3).flatten(), [0, 0.5, 1]
    )


def test_noise_of_a_sample_is_a_function_of_seed_index_and_level() -> None:
    """Whatever the batch, the order of levels and the blocks in which it is drawn; no two of them
    alike.
    """
    together, alone = (
        IndependentNoise(3, [4, 9], (1, 5, 5), CPU),
        IndependentNoise(3, [9], (1, 5, 5), CPU),
    )
    levels = (2 * BLOCK, BLOCK, BLOCK - 1, 1)
    down = [together(k)[1] for k in levels]
    up = [alone(k)[0] for k in reversed(levels)]
    assert all(torch.equal(one, other) for one, other in zip(down, reversed(up), strict=True))
    assert len({noise.sum().item() for noise in down}) == len(levels)


def test_noise_on_prior_states(sampler: Sampler) -> None:
    """The sampling noise's, also in scores of the released protocol; none in its pictures."""
    blurred = sampler.prior.means(torch.arange(30))

    def distance_of_initial_states(protocol: str, scoring: bool) -> float:
        seen: list[torch.Tensor] = []
        other = make_sampler(
            resolve(tiny_config(model__protocol=protocol)),
            sampler.model,
            sampler.prior,
            FLOAT32,
            None,
            choice=Choice(0.05),
            scoring=scoring,
        )
        other.independent(range(20), lambda k, u: seen.append(u.clone()))
        differences = seen[0].flatten(1)[:, None] - blurred.flatten(1)
        return float(differences.norm(dim=2).amin(1).mean())

    assert distance_of_initial_states("released", scoring=False) < 1e-5
    for protocol, scoring in (("paper", False), ("paper", True), ("released", True)):
        assert distance_of_initial_states(protocol, scoring) == pytest.approx(
            0.05 * 8, rel=0.1
        )  # of 64 pixels


@pytest.mark.parametrize(
    ("dequantized", "mirrored"), [(False, False), (True, False), (False, True)]
)
def test_stored_prior_and_data_give_the_same_states(
    dequantized: bool, mirrored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(data__uniform_dequantization=dequantized, data__random_flip=mirrored)
    monkeypatch.setattr("scripts.sampling.sampler.load_images", lambda data, split: SOURCE)
    process = build_process(config)
    stored = process.build_prior(
        batch.images for batch in OrderedBatches(SOURCE, 4, 0, dequantized, mirrored=mirrored)
    )
    data, chosen = data_prior(config, process), torch.tensor([6, 7, 29, 6])
    assert len(stored) == len(data) == (60 if mirrored else 30)
    torch.testing.assert_close(stored.means(chosen), data.means(chosen), atol=2e-6, rtol=0)
    is_mirror_image = torch.allclose(
        data.means(chosen)[1], data.means(chosen)[0].flip(-1), atol=2e-6
    )
    assert is_mirror_image == mirrored


def test_frame_levels() -> None:
    assert frame_levels((7, 6, 5, 4, 3, 2, 1, 0), 3) == (7, 4, 1, 0)
    assert frame_levels((4, 3, 1, 0)) == (4, 3, 1, 0)
    assert frame_levels((4, 3, 2, 1, 0), 100) == (4, 0)


def test_files_of_a_sample_set(sampler: Sampler, tmp_path: Path) -> None:
    """States only where they are asked for: they are a hundred times as large as the samples."""
    sample_set(tmp_path, sampler, range(5), every=2)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"final.npy", "final.png", "init.png", "process.gif", "process.mp4"}
    sample_set(tmp_path, sampler, range(5), every=2, keep_states=True)
    assert {path.name for path in tmp_path.iterdir()} == names | {"samples.npy"}
    kept, final = np.load(tmp_path / "samples.npy"), np.load(tmp_path / "final.npy")
    assert kept.shape == (3, 5, 1, 8, 8)
    np.testing.assert_array_equal(kept[-1], final)
    np.testing.assert_allclose(final, sampler.independent(range(5)), atol=1e-5)
    with Image.open(tmp_path / "process.gif") as gif:
        assert getattr(gif, "n_frames", 1) == 3
    assert b"avc1" in (tmp_path / "process.mp4").read_bytes(), "H.264"


@pytest.mark.parametrize("encoder", ["/nowhere/ffmpeg", "/bin/false"])
def test_an_encoder_that_is_missing_or_fails(
    encoder: str,
    sampler: Sampler,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One warning in all, and everything else is there."""
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", encoder)
    progress.warn_once.cache_clear()
    for _ in range(2):
        sample_set(tmp_path, sampler, range(2))
    interpolation_set(tmp_path / "path", sampler, (0, 1), 3)
    files = {path.name for path in tmp_path.rglob("*.*")}
    assert files == {*("final.npy", "final.png", "init.png", "process.gif"), *INTERPOLATION} - {
        "process.mp4"
    }
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: process.mp4: ")
    assert line.endswith("; continuing without it")


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(101, 44, (44, 102)), (4100, 20, (20, 4096)), (30, 20_000, (4096, 6)), (64, 64, (64, 64))],
)
def test_videos_of_any_size_and_path(
    height: int, width: int, size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too large ones are scaled. In a path a colon ends no protocol and a dash begins no option."""
    monkeypatch.chdir(tmp_path)
    path = Path("-2026-11-30T19:20") / "process.mp4"
    path.parent.mkdir()
    save_mp4(path, [np.full((height, width, 3), grey, np.uint8) for grey in (0, 255)])
    assert next(imageio_ffmpeg.read_frames(path.absolute()))["size"] == size
    assert [file.name for file in path.parent.iterdir()] == ["process.mp4"]


def test_an_interrupted_set_leaves_nothing_half_written(sampler: Sampler, tmp_path: Path) -> None:
    def stop(k: int, u: torch.Tensor) -> None:
        if k == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_set(tmp_path, sampler, range(2), on_step=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Sampling must not disturb torch's global generator: training relies on it for dropout."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_sampled_with_by_default(sampler: Sampler) -> None:
    """The calibrated kernel where it was measured, the paper's noise otherwise, the release's with
    its protocol.
    """
    process = build_process(tiny_config(model__sigma=0.02))
    measured = measured_kernels(sampler)
    assert Choice().kernel(process, "auto", None).label == "0.025"
    assert Choice().kernel(process, "auto", measured).label == "calibrated"
    assert Choice("spectral").kernel(process, "auto", measured).label == "spectral"
    assert Choice("0").kernel(process, "auto", measured).prior_std == 0
    assert Choice().kernel(process, "spectral", measured).label == "spectral"
    released = build_process(tiny_config(model__protocol="released"))
    assert Choice().kernel(released, "auto", measured).label == "0.01"
    for wrong in ("-1", "nan"):
        with bad_input(f"--delta={wrong}: must be a number of at least 0"):
            parse_number("delta", wrong, NAMES)
    with bad_input(r"--delta=0.o1: must be a number of at least 0, or one of auto"):
        Choice("0.o1").kernel(process, "auto", measured)
    with bad_input(r"--delta=spectral: nothing was measured .* scripts\.tools\.calibrate"):
        Choice("spectral").kernel(process, "auto", None)


def measured_kernels(sampler: Sampler) -> dict[str, torch.Tensor]:
    assert isinstance(sampler.process, GaussianProcess)
    images = torch.from_numpy(PIXELS) / 255
    state = calibrate(sampler.process, sampler.model, FLOAT32, images, 0, 8)
    assert state is not None
    return state


@pytest.mark.parametrize(
    "choice", [Choice("spectral"), Choice("calibrated"), Choice(steps="2"), Choice(steps="2:bound")]
)
def test_measured_kernels_through_all_kinds(choice: Choice, sampler: Sampler) -> None:
    """They change the samples, and neither their independence of the batch nor the ends of an
    interpolation.
    """
    config = tiny_config()
    prior, measured = sampler.prior, measured_kernels(sampler)
    other = make_sampler(
        resolve(config), sampler.model, prior, FLOAT32, measured, choice=choice, seed=1
    )
    together = other.independent(range(4))
    assert not torch.allclose(together, sampler.independent(range(4)), atol=1e-2)
    torch.testing.assert_close(other.independent([2])[0], together[2], atol=1e-4, rtol=0)
    torch.testing.assert_close(
        other.interpolate((2, 3), 5)[[0, -1]], together[[2, 3]], atol=1e-4, rtol=0
    )
    torch.testing.assert_close(other.same_init(range(2))[:1], together[:1], atol=1e-4, rtol=0)
    assert other.prior_std == config.model.sigma
    assert other.num_steps == (3 if choice.steps is None else 2)


def test_levels_to_visit(sampler: Sampler) -> None:
    blur = DCTBlur(blur_schedule(10, 0.5, 2.0), 8, 8)
    process, measured = heat_dissipation(blur, 0.01, num_channels=1), None
    assert parse_steps("4", process, measured) == (10, 8, 5, 2, 0)
    assert parse_steps("10", process, measured) == process.chain
    assert parse_steps("10,7,3,0", process, measured) == (10, 7, 3, 0)
    for wrong in (
        "0",
        "11",
        "x",
        "4:fid",
        "4:",
        "9,3,0",
        "10,3",
        "10,3,5,0",
        "10,3,3,0",
        "11,10,0",
    ):
        with pytest.raises(ValueError, match=r"must (be N from 1 to 10|go down from 10 to 0)"):
            parse_steps(wrong, process, measured)
    measured = measured_kernels(sampler)
    with bad_input(r"--delta=0.01 --steps=2: skipping levels"):
        Choice("0.01", "2").kernel(sampler.process, "auto", measured)
    labels = {
        Choice(steps=steps).label(sampler.kernel)
        for steps in (None, "2", "2:bound", "3,2,0", "3,1,0")
    }
    assert len(labels) == 4, "explicit levels are told apart by the kernel's own chain"
    for steps in ("3,2,0", "3,1,0"):
        choice = Choice(steps=steps)
        labels.add(choice.label(choice.kernel(sampler.process, "auto", measured)))
    assert len(labels) == 6


def exported(directory: Path) -> dict[str, np.ndarray]:
    return {
        path.name: np.asarray(Image.open(path)).astype(int)
        for path in sorted(directory.glob("*.png"))
    }


DAMAGED = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "without its end": lambda data: data[:-12],
    "zeros": lambda data: bytes(len(data)),
    "one bit": lambda data: data[:45] + bytes([data[45] ^ 1]) + data[46:],
}


@pytest.mark.parametrize("damage", [*DAMAGED, "another size"])
def test_a_damaged_image_of_an_export_is_drawn_again(
    damage: str, sampler: Sampler, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a power cut. The others stay, and the array is complete."""
    export(tmp_path, sampler, {"seed": 1}, 4, 4)
    before, file = exported(tmp_path), tmp_path / "000002.png"
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")}
    if damage == "another size":
        Image.new("L", (4, 4)).save(file)
    else:
        file.write_bytes(DAMAGED[damage](file.read_bytes()))
    export(tmp_path, sampler, {"seed": 1}, 4, 4, npz=True)
    assert "1 of 4 images are damaged" in capsys.readouterr().err
    for name, pixels in exported(tmp_path).items():
        assert np.abs(pixels - before[name]).max() <= 1, "another batch, the same image"
        assert ((tmp_path / name).stat().st_mtime_ns == times[name]) == (name != file.name)
    with np.load(tmp_path / "samples_4x8x8x1.npz") as arrays:
        assert (arrays["arr_0"][..., 0] == [*exported(tmp_path).values()]).all()


def test_an_exported_array_may_be_larger_than_two_gigabytes(
    sampler: Sampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its size is not known when the archive is begun; here the limit is 100 bytes."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    export(tmp_path, sampler, {"seed": 1}, 4, 4, npz=True)
    with np.load(tmp_path / "samples_4x8x8x1.npz") as arrays:
        assert arrays["arr_0"].shape == (4, 8, 8, 1)


def test_two_exports_into_one_directory(
    sampler: Sampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No image is drawn twice, and none renames what the other is writing."""

    def taken(*_: object) -> None:
        raise BlockingIOError

    monkeypatch.setattr(fcntl, "lockf", taken)
    with bad_input("another export is writing there"):
        export(tmp_path, sampler, {"seed": 1}, 4, 4)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_two_commands_want_one_directory_for_other_pictures(tmp_path: Path) -> None:
    """The first has made it, and has not yet said what for."""
    (tmp_path / "delta").mkdir()
    settings = {"checkpoint_step": 2}
    assert own_directory(tmp_path / "delta", settings).name == "delta_step_2"
    assert own_directory(tmp_path / "delta", settings).name == "delta_step_2", "drawn again"
    assert own_directory(tmp_path / "delta", settings | {"seed": 1}).name.startswith(
        "delta_step_2_"
    )


@pytest.mark.parametrize(
    ("process", "choice", "message"),
    [
        (
            "flow",
            Choice(sampler="euler"),
            "--sampler=euler: must be one of reverse, multistep, heun",
        ),
        (
            "eps",
            Choice(sampler="multistep"),
            "--sampler=multistep: the network must predict x or v",
        ),
        ("heat", Choice(sampler="multistep", steps="5"), "must predict x or v"),
        ("heat", Choice(sampler="heun"), "--sampler=heun: the network must predict x, eps or v"),
        ("flow", Choice(sampler="heun", eta=0.5), "its steps are deterministic: --eta=0"),
    ],
)
def test_samplers_that_cannot_be_taken(process: str, choice: Choice, message: str) -> None:
    with bad_input(message):
        choice.kernel(make(process), "auto", None)
