"""A small convolutional classifier, whose features replace Inception's for digits and the like.

For the embedded digits its weights are part of the program, so that a score means the same on every
machine; for other data with labels it is trained once and kept in the run directory.
"""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ml_collections import ConfigDict
from torch import nn

from scripts.config.paths import ROOT
from scripts.data.datasets import Split, load_labelled
from scripts.runtime.progress import progress_bar
from scripts.runtime.randomness import Purpose, stream
from scripts.storage.files import atomic_write, make_directory, read_npz

SEED = 0
"""Not the evaluation's seed: scores of different seeds must use the same classifier."""
INCLUDED = ROOT / "data" / "mnist5k_classifier.npz"
"""The network's state dict, and in `data_crc32` the checksum of the images and labels that it was
trained on.
"""
STEPS = 600
BATCH_SIZE = 64
LEARNING_RATE = 3e-3
SHIFT = 2
"""Augmentation: training images are shifted by up to this many pixels."""
FEATURES = 64


class Network(nn.Module):
    """Three convolutions, a layer of 64 features, and the classes."""

    def __init__(self, num_channels: int, num_classes: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *_block(num_channels, 16), nn.MaxPool2d(2), *_block(16, 32), nn.MaxPool2d(2), *_block(32, 64),
            nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(64 * 9, FEATURES), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(FEATURES, num_classes)

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) in [0, 1] to logits (B, classes)."""
        return self.head(self.trunk(u - 0.5))


def _block(channels: int, out: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]


class ClassifierFeatures:
    """Features (B, 64) of uint8 images: the last layer before the classes."""

    num_features = FEATURES

    def __init__(self, network: Network, device: torch.device, accuracy: float) -> None:
        """accuracy: of the network on held-out images, a part of 1."""
        self.network, self.device, self.accuracy = network.to(device).eval(), device, accuracy
        weights = b"".join(value.cpu().numpy().tobytes() for value in network.state_dict().values())
        self.settings: dict[str, Any] = {
            "extractor": "classifier",
            "weights_crc32": zlib.crc32(weights),
        }

    @torch.no_grad()
    def __call__(self, pixels: torch.Tensor) -> np.ndarray:
        """Images uint8 (B, C, H, W) of the data set's shape to features float32 (B, 64)."""
        u = pixels.to(self.device).float() / 255
        return self.network.trunk(u - 0.5).cpu().numpy()


def classifier_features(
    directory: Path, data: ConfigDict, device: torch.device, steps: int = STEPS
) -> ClassifierFeatures:
    """The classifier of the configuration's data set.

    For the embedded digits at their own size it is the included one. For others it is trained on
    the training images, once, and kept in `directory`. Raises UserError for a data set without
    labels.
    """
    pixels, labels = _read(data, "train")
    with torch.random.fork_rng(
        devices=[]
    ):  # initial weights are drawn from the global generator, whose state must not change
        torch.manual_seed(int(stream(SEED, Purpose.CLASSIFIER).integers(2**63)))
        network = Network(pixels.shape[1], int(labels.max()) + 1)
    weights, key = (
        read_npz(INCLUDED),
        zlib.crc32(pixels.numpy().tobytes(), zlib.crc32(labels.numpy().tobytes())),
    )
    if weights.pop("data_crc32") != key:
        key = zlib.crc32(f"{steps} {BATCH_SIZE} {LEARNING_RATE} {SHIFT}".encode(), key)
        file = make_directory(directory, "classifier") / f"classifier_{key:08x}.npz"
        if not file.exists():
            _train(network.to(device), pixels, labels, steps)
            with atomic_write(file) as temporary:
                np.savez(
                    temporary,
                    **{name: value.cpu().numpy() for name, value in network.state_dict().items()},
                )
        weights = read_npz(file)
    network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    accuracy = _accuracy(network.to(device).eval(), *_read(data, "held_out"))
    print(f"classifier: {accuracy:.2%} of held-out images right", flush=True)
    return ClassifierFeatures(network, device, accuracy)


def _read(data: ConfigDict, split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 (N, C, H, W) and int64 (N,). The data sets that have labels fit into memory."""
    source, labels = load_labelled(data, split)
    return torch.from_numpy(np.stack([source[i] for i in range(len(source))])), torch.from_numpy(
        labels
    )


def _train(network: Network, pixels: torch.Tensor, labels: torch.Tensor, steps: int) -> None:
    """Cross-entropy with a one-cycle learning rate; step n's batch and shifts are a function of n."""
    device = next(network.parameters()).device
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    network.train()
    with progress_bar(steps, "step", "training the classifier") as bar:
        for step in range(1, steps + 1):
            rng = stream(SEED, Purpose.CLASSIFIER, step)
            chosen = torch.from_numpy(rng.integers(len(pixels), size=BATCH_SIZE))
            u = _shifted(
                pixels[chosen].to(device).float() / 255,
                rng.integers(2 * SHIFT + 1, size=(BATCH_SIZE, 2)),
            )
            loss = F.cross_entropy(network(u), labels[chosen].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update()


def _shifted(u: torch.Tensor, offsets: np.ndarray) -> torch.Tensor:
    """Each image shifted by its row of offsets (B, 2), where (SHIFT, SHIFT) is no shift; edges are
    repeated.
    """
    height, width = u.shape[2:]
    padded = F.pad(u, (SHIFT,) * 4, mode="replicate")
    moved = [
        image[:, y : y + height, x : x + width]
        for image, (y, x) in zip(padded, offsets.tolist(), strict=True)
    ]
    return torch.stack(moved)


@torch.no_grad()
def _accuracy(network: Network, pixels: torch.Tensor, labels: torch.Tensor) -> float:
    device = next(network.parameters()).device
    found = [
        network(batch.to(device).float() / 255).argmax(1).cpu() for batch in pixels.split(1000)
    ]
    return float((torch.cat(found) == labels).double().mean())
