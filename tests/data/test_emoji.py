"""The embedded emoji."""

from scripts.data.datasets import DATA, load_images
from tests.tiny import tiny_config


def test_what_comes_with_the_program() -> None:
    """About 1,600 pictures at most 3 MB, a tenth of them held out, and their licence."""
    data = tiny_config(data__dataset="emoji32", data__image_size=32, data__num_channels=3).data
    train, held_out = load_images(data, "train"), load_images(data, "held_out")
    assert (len(train), len(held_out), train[0].shape) == (1473, 163, (3, 32, 32))
    assert (DATA / "emoji32.npz").stat().st_size < 3e6
    assert "Apache License" in (DATA / "emoji32.LICENSE").read_text()
