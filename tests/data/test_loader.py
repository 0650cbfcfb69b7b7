"""What batches are made of images: order, flips, noise, and what happens to damaged ones."""

import math
import threading
import time
import tracemalloc
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from scripts.data import loader
from scripts.data.images import ArrayImages, ImageSource
from scripts.data.loader import Batch, OrderedBatches, TrainBatches, train_loader
from tests.conftest import bad_input
from tests.images import WithDamage, numbered, random_pixels


def plain(source: ImageSource, batch_size: int, seed: int = 0) -> TrainBatches:
    """Neither mirrored nor dequantised."""
    return TrainBatches(source, seed, batch_size, False, False)


def joined(batches: Iterable[Batch]) -> torch.Tensor:
    """The images of all batches."""
    return torch.cat([batch.images for batch in batches])


@given(n=st.integers(2, 40), batch_size=st.integers(1, 60), seed=st.integers(0, 2**64 - 1))
@hypothesis_settings(max_examples=60, deadline=None)
def test_each_epoch_visits_every_image_exactly_once(n: int, batch_size: int, seed: int) -> None:
    """Also where a batch straddles epochs or holds several."""
    batches = plain(numbered(n), batch_size, seed)
    epochs = 3
    seen = torch.cat([batches[step].indices for step in range(math.ceil(epochs * n / batch_size))])
    for epoch in range(epochs):
        assert sorted(seen[epoch * n : (epoch + 1) * n].tolist()) == list(range(n))


def test_epochs_and_seeds_have_different_orders_and_batch_sizes_the_same() -> None:
    def order(seed: int, epoch: int, batch_size: int = 50) -> list[int]:
        batches = plain(numbered(50), batch_size, seed)
        first = epoch * 50 // batch_size
        return torch.cat([batches[first + i].indices for i in range(50 // batch_size)]).tolist()

    assert order(1, 0) == order(1, 0, batch_size=5)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def assert_same(a: list[Batch], b: list[Batch]) -> None:
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.indices, other.indices)
        names = ([text.partition(": ")[0] for text in batch.unreadable] for batch in (one, other))
        assert next(names) == next(names), "a pack no longer has the reasons"


SOURCE = ArrayImages(random_pixels(13, 6, 6, 3, seed=3))
VALUES = torch.from_numpy(np.stack([SOURCE[i] for i in range(13)])).float()


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    """Whatever was asked for before, with workers or without, from the start or the middle."""

    def batches() -> TrainBatches:
        return TrainBatches(WithDamage(SOURCE, {2, 3}), 42, 5, True, True)

    expected = [batches()[step] for step in range(9)]
    jumping = batches()
    order = (8, 0, 5, 8, 3)
    assert_same([jumping[step] for step in order], [expected[step] for step in order])
    for first, num_workers in ((0, 0), (0, 2), (4, 2), (9, 2)):
        assert_same(list(train_loader(batches(), first, 9, num_workers)), expected[first:])


@pytest.mark.parametrize("num_workers", [1, 2, 7])
def test_batches_are_read_ahead_in_other_threads_and_no_further_than_needed(
    num_workers: int,
) -> None:
    """A long run must not fill the memory with batches, nor continue reading once it is closed."""
    threads = []

    class Recording(ArrayImages):
        def __getitem__(self, i: int) -> np.ndarray:
            threads.append(threading.get_ident())
            return super().__getitem__(i)

    source = Recording(np.zeros((13, 6, 6), np.uint8))
    reader = train_loader(plain(source, 4), 0, 1000, num_workers)
    for _ in range(3):
        next(reader)
    reader.close()
    assert 3 * 4 <= len(threads) <= (3 + 2 + loader.AHEAD) * 4
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("num_workers", [1, 64])
def test_memory_of_reading_ahead_does_not_grow_with_the_cores(num_workers: int) -> None:
    """A batch is 0.2 MB of pixels, 0.8 MB in float32: AHEAD + 1 of the former, 3 of the latter."""
    source = ArrayImages(np.zeros((40, 64, 64, 3), np.uint8))
    tracemalloc.start()
    for batches in (
        train_loader(TrainBatches(source, 0, 16, True, True), 0, 12, num_workers),
        OrderedBatches(source, 16, num_workers, True, seed=0),
    ):
        for _ in batches:
            time.sleep(0.02)  # for the threads to read as much as they may
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6  # one float32 batch more on a busy machine


def test_flips_mirror_about_half_of_the_training_images_left_to_right() -> None:
    array = np.zeros((2, 4, 4), np.uint8)
    array[:, 0, 0] = 255  # top left
    batches = TrainBatches(ArrayImages(array), 0, 64, True, False)
    images = joined(batches[step] for step in range(20))
    assert ((images[:, 0, 0, 0] == 1) ^ (images[:, 0, 0, 3] == 1)).all()
    mirrored = (images[:, 0, 0, 3] == 1).float().mean().item()
    assert 0.43 < mirrored < 0.57  # five standard deviations of 1280 throws
    assert (plain(ArrayImages(array), 64)[0].images[:, 0, 0, 0] == 1).all()


def test_values_are_v_over_255_or_dequantised_stay_within_their_level_and_fill_it() -> None:
    source = ArrayImages(np.arange(256, dtype=np.uint8).reshape(1, 16, 16).repeat(2, axis=0))
    assert torch.equal(plain(source, 2)[0].images[0].flatten(), torch.arange(256) / 255)
    batches = TrainBatches(source, 0, 64, False, True)
    scaled = joined(batches[step] for step in range(20)) * 256
    assert torch.equal(scaled.floor(), torch.arange(256.0).reshape(1, 16, 16).expand_as(scaled))
    noise = scaled % 1
    assert 0 <= noise.min() < 1e-3
    assert 1 - 1e-3 < noise.max() < 1
    assert abs(noise.mean() - 0.5) < 0.005


def test_noise_differs_between_images_steps_and_epochs() -> None:
    source = ArrayImages(np.zeros((4, 4, 4), np.uint8))
    training = TrainBatches(source, 0, 4, False, True)
    held_out = OrderedBatches(source, 4, 0, True, seed=0)
    for images in (joined(training[step] for step in range(3)), joined(held_out)):
        assert len(images.flatten(1).unique(dim=0)) == len(images)


def test_unreadable_training_image_is_replaced_by_the_next_readable_one_and_named() -> None:
    batch = plain(WithDamage(numbered(6), {2, 3, 5}), 6)[0]
    replacement = {0: 0, 1: 1, 2: 4, 3: 4, 4: 4, 5: 0}
    undamaged = plain(numbered(6), 6)[0].indices.tolist()
    assert batch.indices.tolist() == [replacement[i] for i in undamaged]
    assert torch.equal(batch.images[:, 0, 0, 0].mul(255).round().long(), batch.indices)
    assert sorted(batch.unreadable) == [f"image {i}: damaged for the test" for i in (2, 3, 5)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_nothing_readable_is_a_user_error_of_one_line_even_from_a_thread(num_workers: int) -> None:
    batches = plain(WithDamage(numbered(4), {0, 1, 2, 3}), 2)
    line = "^config.data.dataset.*none of the 4 images can be read, such as image [^\\n]*$"
    with bad_input(line):
        list(train_loader(batches, 0, 3, num_workers))


# --- ordered batches ---


@pytest.mark.parametrize(
    ("num_images", "expected"),
    [(0, list(range(10))), (4, [0, 2, 5, 7]), (7, [0, 1, 2, 4, 5, 7, 8]), (99, list(range(10)))],
)
def test_ordered_batches_are_spread_evenly_over_the_images(
    num_images: int, expected: list[int]
) -> None:
    """Not the first ones: a data set sorted by class would be judged by its first class."""
    seen = list(OrderedBatches(numbered(10), 4, 0, False, num_images))
    assert len(seen) == math.ceil(len(expected) / 4)
    assert torch.cat([batch.indices for batch in seen]).tolist() == expected
    assert joined(seen)[:, 0, 0, 0].mul(255).round().tolist() == expected
    assert seen[0].indices.dtype == torch.int64


def test_noise_belongs_to_seed_and_image() -> None:
    """Whatever the batch size, the threads, and what else can be read."""
    expected = joined(OrderedBatches(SOURCE, 4, 0, True, seed=5))
    assert torch.equal((expected * 256).floor(), VALUES)
    for batch_size, num_workers in ((4, 0), (13, 0), (3, 2)):
        again = OrderedBatches(SOURCE, batch_size, num_workers, True, seed=5)
        assert torch.equal(joined(again), expected)
    assert not torch.equal(joined(OrderedBatches(SOURCE, 4, 0, True, seed=6)), expected)
    damaged = next(iter(OrderedBatches(WithDamage(SOURCE, {4}), 13, 0, True, seed=5)))
    assert torch.equal(damaged.images, expected[damaged.indices])
    assert len(damaged.indices) == 12


def test_without_a_seed_noise_is_its_mean() -> None:
    assert torch.equal(joined(OrderedBatches(SOURCE, 4, 0, True)), (VALUES + 0.5) / 256)
    assert torch.equal(joined(OrderedBatches(SOURCE, 4, 0, False)), VALUES / 255)


@pytest.mark.parametrize("batch_size", [2, 13])
def test_the_mirror_image_after_each_image(batch_size: int) -> None:
    source = WithDamage(SOURCE, {4})
    batches = list(OrderedBatches(source, batch_size, 0, True, mirrored=True))
    images, unmirrored = joined(batches), joined(OrderedBatches(source, batch_size, 0, True))
    assert torch.equal(images[0::2], unmirrored)
    assert torch.equal(images[1::2], unmirrored.flip(3))  # left and right
    indices = torch.cat([batch.indices for batch in batches])
    assert indices.tolist() == [i for i in range(13) if i != 4 for _ in range(2)]


def test_ordered_batches_name_every_unreadable_image() -> None:
    batches = list(OrderedBatches(WithDamage(numbered(6), {1, 2, 3}), 2, 0, False))
    assert [batch.indices.tolist() for batch in batches] == [[0], [], [4, 5]]
    names = [[text.partition(":")[0] for text in batch.unreadable] for batch in batches]
    assert names == [["image 1"], ["image 2", "image 3"], []]
    assert batches[1].images.shape == (0, 1, 4, 4)
