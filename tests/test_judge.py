"""The judge of tests/judge.py knows digits from what only looks like them."""

import torch

from configs.mnist import quickstart
from scripts.data.datasets import load_labelled
from tests.judge import SURE, certainty, judge, pixels


def test_the_judge_is_sure_of_digits_and_not_of_mixtures() -> None:
    source, labels = load_labelled(quickstart.get_config().data, "held_out")
    images, model = pixels(source), judge()
    mixtures = (images + images.flip(0)) / 2  # the data are sorted by class
    assert (model(images).argmax(1) == torch.from_numpy(labels)).float().mean() > 0.9
    assert 0.8 < (certainty(model, images) > SURE).float().mean() < 0.92
    assert (certainty(model, mixtures) > SURE).float().mean() < 0.5
