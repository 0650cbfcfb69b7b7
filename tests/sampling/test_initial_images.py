"""Samples that start from images of one's own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model_code import build_model
from model_code.gaussian import GaussianProcess
from scripts.config.resolve import resolve
from scripts.runtime.device import Precision
from scripts.sampling.choice import Choice
from scripts.sampling.initial_images import InitialImages, open_initial_images
from scripts.sampling.output import fill_rows, sample_set
from scripts.sampling.sampler import Sampler, load_sampler, make_sampler
from tests.conftest import bad_input
from tests.evaluation.made_run import make_run
from tests.golden import fill_golden
from tests.images import random_images, save_images
from tests.tiny import tiny_config

IMAGES = random_images(5, 1, 8, 8)
INITIAL_IMAGES = InitialImages(IMAGES.__getitem__, len(IMAGES))
FLOAT32 = Precision.named(torch.device("cpu"), "float32")


def made_sampler(process_name: str = "heat", delta: float | None = 0.05) -> Sampler:
    config = tiny_config(model__process=process_name, model__K=6)
    experiment, model = resolve(config), build_model(config).eval()
    fill_golden(model)
    prior = experiment.process.build_prior([IMAGES])
    return make_sampler(experiment, model, prior, FLOAT32, None, choice=Choice(delta), seed=3)


def test_from_the_last_level_they_are_samples_of_these_images() -> None:
    """As from a prior bank of them."""
    sampler = made_sampler()
    started = sampler.starting_from(INITIAL_IMAGES)
    torch.testing.assert_close(
        started.prior.means(torch.arange(5)),
        sampler.prior.means(torch.arange(5)),
        atol=2e-6,
        rtol=0,
    )
    assert started.kernel.chain == sampler.kernel.chain
    assert started.prior_std == sampler.prior_std


@pytest.mark.parametrize("level", [1, 4, 6])
def test_a_model_that_knows_the_images_gives_them_back(level: int) -> None:
    """mu(u_k, k) = A_{k-1} u_0: the process passes through the blurred images below the level, and
    ends at the images.
    """
    sampler = made_sampler(delta=0.0)
    assert isinstance(sampler.process, GaussianProcess)
    blur = sampler.process.blur
    u0 = IMAGES[[0, 0, 1, 1]]
    known = replace(sampler, model=lambda u, k: blur(u0, k - 1) - u)
    seen: dict[int, torch.Tensor] = {}
    found = known.from_images(IMAGES[:2], 2, level, lambda k, u: seen.update({k: u.clone()}))
    assert found.shape == (2, 2, 1, 8, 8)
    assert list(seen) == list(range(level, -1, -1))
    for k, u in seen.items():
        torch.testing.assert_close(u, blur(u0, torch.full((4,), k)), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.flatten(0, 1), u0, atol=1e-5, rtol=0)


def test_samples_of_an_image_differ_in_the_noise_alone() -> None:
    together = made_sampler().from_images(IMAGES, 3, 4)
    assert not torch.allclose(together[:, 0], together[:, 1], atol=1e-2)
    alone = made_sampler().starting_from(replace(INITIAL_IMAGES, per_image=3), 4).independent([7])
    torch.testing.assert_close(alone[0], together[2, 1], atol=1e-4, rtol=0)


def test_which_image_a_sample_starts_from() -> None:
    assert INITIAL_IMAGES.origins(0, range(7)) == [0, 1, 2, 3, 4, 0, 1]
    assert replace(INITIAL_IMAGES, per_image=2).origins(0, [0, 1, 2, 9, 10]) == [0, 0, 1, 4, 0]
    shuffled = replace(INITIAL_IMAGES, shuffled=True)
    assert sorted(shuffled.origins(1, range(5))) == [0, 1, 2, 3, 4]
    assert len({tuple(shuffled.origins(seed, range(5))) for seed in range(10)}) > 5
    assert shuffled.origins(1, [3]) == shuffled.origins(1, range(5))[3:4]


def test_noise_of_the_first_state_is_that_of_the_level() -> None:
    """Heat dissipation has delta everywhere; of blurring diffusion z_k is what training shows the
    network.
    """
    many = torch.zeros(2000, 1, 8, 8) + 0.5
    for name, expected in (("heat", 0.05), ("blurring_diffusion", None)):
        sampler = made_sampler(name, None if expected is None else 0.05)
        seen: list[torch.Tensor] = []
        still = replace(sampler, model=lambda u, k: torch.zeros_like(u))
        keep = lambda k, u, seen=seen: seen.append(u.clone())  # noqa: E731
        still.from_images(many, 1, 3, keep)
        process, k = sampler.process, torch.full((2000,), 3)
        std = expected or float(
            process.to_images(process.corrupt(many, k, torch.ones_like(many))[0]).mean() - 0.5
        )
        assert float(seen[0].std()) == pytest.approx(std, rel=0.02)
        assert float(seen[0].mean()) == pytest.approx(0.5, abs=0.02)


def test_a_level_that_is_not_visited_names_its_neighbours() -> None:
    for level, near in ((7, "5 and 6"), (0, "1 and 2")):
        with bad_input(
            rf"--from_level={level}: must be a level that is visited; near it {near}",
        ):
            made_sampler().from_images(IMAGES, 1, level)


def test_images_are_read_as_training_images_are(tmp_path: Path) -> None:
    """Transparency over white, grey or colours as the network has them, resized and cropped; rows
    of arrays, with one channel or three; all of a folder.
    """
    picture = Image.new("RGBA", (24, 16), (255, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 12, 16))
    picture.save(tmp_path / "a.png")
    Image.new("L", (8, 8), 51).save(tmp_path / "b.png")
    np.save(tmp_path / "c.npy", np.full((3, 16, 16, 3), 102, np.uint8))
    np.savez(tmp_path / "c.npz", arr_0=np.full((2, 8, 8), 102, np.uint8))
    for channels, right in ((1, [76 / 255]), (3, [1.0, 0.0, 0.0])):
        data = tiny_config(data__num_channels=channels).data
        one = open_initial_images(str(tmp_path / "a.png"), data, 1).images([0])
        assert one.shape == (1, channels, 8, 8)
        torch.testing.assert_close(one[0, :, 4, 0], torch.ones(channels))
        torch.testing.assert_close(one[0, :, 4, 7], torch.tensor(right))
        for name, count, value in (("", 2, 51), ("c.npy", 3, 102), ("c.npz", 2, 102)):
            opened = open_initial_images(str(tmp_path / name), data, 1)
            last = opened.images([count - 1])
            assert opened.count == count
            torch.testing.assert_close(last, torch.full((1, channels, 8, 8), value / 255))
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no image")
    np.savez(tmp_path / "other.npz", images=np.zeros(3))
    with bad_input(r"empty: cannot be used \(.*empty has no image files"):
        open_initial_images(str(tmp_path / "empty"), data, 1)
    for wrong in ("text.png", "other.npz", "nothing.npy"):
        with bad_input(rf"--init=.*{wrong}: cannot be used .* expected: a folder of images"):
            open_initial_images(str(tmp_path / wrong), data, 1)


def test_a_picture_of_image_blurred_state_and_samples(tmp_path: Path) -> None:
    for per_init, size, rows, columns in ((2, 5, 2, 2), (None, 9, 5, 1), (7, 3, 1, 7)):
        sampler, count = fill_rows(made_sampler().starting_from(INITIAL_IMAGES, 2), size, per_init)
        sample_set(tmp_path, sampler, range(count))
        with Image.open(tmp_path / "initial_images.png") as picture:
            assert picture.size == ((columns + 2) * 100 + 4, rows * 100 + 4)
            first = np.asarray(picture)[4:100, 4:100]
            np.testing.assert_array_equal(first[::12, ::12, 0], (IMAGES[0, 0] * 255).round().byte())


def test_settings_know_images_and_level(tmp_path: Path) -> None:
    """Without initial images they are what they were, so that caches and exports continue."""
    config = tiny_config()
    make_run(config, tmp_path)
    found = []
    for choice in (
        Choice(),
        Choice(init="held_out"),
        Choice(init="train"),
        Choice(init="train", from_level=2, per_init=4),
    ):
        sampler, trained = load_sampler(tmp_path, config=config, choice=choice)
        found.append(sampler.record(trained).settings())
    assert not found[0].keys() & {"init", "from_level", "per_init"}
    assert [list(row["files"]) for row in found] == [[], ["held_out"], ["train"], ["train"]]
    assert [row["init"] for row in found[1:]] == ["held_out", "train", "train"]
    assert [(row["from_level"], row["per_init"], row["chain"]) for row in found[2:]] == [
        (3, 1, [3, 2, 1, 0]),
        (2, 4, [2, 1, 0]),
    ]
    assert found[1]["prior_images"] == 500
    save_images(tmp_path / "train", ["a.png"])  # no training set, though its name says so
    assert (
        open_initial_images(f"{tmp_path}/train/", config.data, 1).settings["init"] == "train_folder"
    )
