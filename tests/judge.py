"""How many digits a judge that the project has never seen is sure of: a perceptron on raw pixels,
trained here in seconds.

python -m tests.judge SAMPLES.npz|FOLDER

of 28x28 digits, as sample.py --export_dir=D --export=npz writes
"""

import sys

import torch
import torch.nn.functional as F
from torch import nn

from configs.mnist import quickstart
from scripts.data.datasets import load_labelled, open_images
from scripts.data.images import ImageSource, all_pixels

SURE = 0.9


def pixels(source: ImageSource) -> torch.Tensor:
    """float32 (N, 784) in [0, 1]."""
    return torch.from_numpy(all_pixels(source)).float().flatten(1) / 255


def judge() -> nn.Module:
    """A perceptron with one hidden layer, trained on the embedded training digits; the same one
    every time.
    """
    source, labels = load_labelled(quickstart.get_config().data, "train")
    x, y = pixels(source), torch.from_numpy(labels)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, 10))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4)
        for _ in range(15):
            for rows in torch.randperm(len(x)).split(64):
                F.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
                optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def certainty(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The highest probability of a class for each image (N, 784): (N,)."""
    return model(images).softmax(1).amax(1)


def main(path: str) -> None:
    """Print the share of digits that the judge is sure of, with its standard error, beside that of
    held-out digits.
    """
    data = quickstart.get_config().data
    found = {
        path: open_images(path, "SAMPLES", (1, 28, 28)),
        "held-out digits": load_labelled(data, "held_out")[0],
    }
    model = judge()
    for name, source in found.items():
        sure = (certainty(model, pixels(source)) > SURE).float()
        print(
            f"{name}: surer than {SURE} of {sure.mean():.1%} +- "
            f"{sure.std() / len(sure) ** 0.5:.1%} (N = {len(sure)})"
        )


if __name__ == "__main__":
    main(sys.argv[1])
