"""A small convolutional classifier, whose features replace Inception's for digits and the like.

For the embedded data sets its weights are part of the program, so that a score means the same on
every machine; for other data with labels it is trained once and kept in the run directory.

The features of the plain classifier see sharpness and hardly see shape. The robust one is trained
with blur and noise, which it has to overlook, and with blends, shuffled blocks and random phases as
four further classes, which it has to see; its distances put planted cases in the order that people
would (scripts/tools/planted.py).
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
from scripts.data.images import all_pixels
from scripts.evaluation.corruptions import CORRUPTIONS, GREY_LEVEL, OTHER_THINGS, blur, noise
from scripts.runtime.progress import progress_bar
from scripts.runtime.randomness import Purpose, stream
from scripts.storage.files import atomic_write, make_directory, read_npz
from scripts.storage.published import tensors_crc32

SEED = 0
"""Not the evaluation's seed: scores of different seeds must use the same classifier."""
INCLUDED = ROOT / "data"
"""Where files DATASET_KIND.npz of a network's state dict are, with `data_crc32` the checksum of the
images and labels that it was trained on."""
STEPS = 600
BATCH_SIZE = 64
LEARNING_RATE = 3e-3
SHIFT = 2
"""Augmentation: training images are shifted by up to this many pixels."""
MOST_BLUR, MOST_NOISE = 1.2, 25 * GREY_LEVEL
"""The robust classifier's augmentation, each of half of its images: pixels, standard deviation."""
FAKES = 8
"""Images of each further class that the robust classifier sees in a batch beside the others."""
FEATURES = 64


class Network(nn.Module):
    """Three convolutions, a layer of 64 features, and the classes."""

    def __init__(self, num_channels: int, num_classes: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *_block(num_channels, 16), nn.MaxPool2d(2),
            *_block(16, 32), nn.MaxPool2d(2), *_block(32, 64),
            nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(64 * 9, FEATURES), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(FEATURES, num_classes)

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) in [0, 1] to logits (B, classes)."""
        return self.head(self.trunk(u - 0.5))


def _block(channels: int, out: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]


class ClassifierFeatures:
    """Features (B, 64) of uint8 images: the last layer before the classes, times `scale`."""

    num_features = FEATURES

    def __init__(
        self, network: Network, device: torch.device, kind: str, accuracy: float, scale: float = 1.0
    ) -> None:
        """accuracy: of the network on held-out images, a part of 1."""
        self.network, self.device, self.scale = network.to(device).eval(), device, scale
        self.accuracy = accuracy
        crc32 = tensors_crc32(network.state_dict().values())
        self.settings: dict[str, Any] = {"extractor": kind, "weights_crc32": crc32}

    @torch.no_grad()
    def __call__(self, pixels: torch.Tensor) -> np.ndarray:
        """Images uint8 (B, C, H, W) of the data set's shape to features float32 (B, 64)."""
        u = pixels.to(self.device).float() / 255
        return self.network.trunk(u - 0.5).cpu().numpy() * np.float32(self.scale)

    @torch.no_grad()
    def predict(self, features: np.ndarray) -> np.ndarray:
        """Classes int64 (B,) from features; of the robust one also those that are no images'."""
        scaled = torch.from_numpy(features / np.float32(self.scale)).to(self.device)
        return self.network.head(scaled).argmax(1).cpu().numpy()


def classifier_features(
    directory: Path,
    data: ConfigDict,
    device: torch.device,
    kind: str = "classifier",
    steps: int = STEPS,
) -> ClassifierFeatures:
    """The classifier of the configuration's data set; `kind` is "classifier" or
    "robust_classifier".

    For the embedded data sets at their own size it is an included one. For others it is trained on
    the training images, once, and kept in `directory`. The robust one's features are scaled so that
    their variance over the training images is 100: Frechet distances are in percent of it. Raises
    UserError for a data set without labels.
    """
    robust = kind == "robust_classifier"
    pixels, labels = _read(data, "train")
    num_classes = int(labels.max()) + 1
    with torch.random.fork_rng(devices=[]):  # the global generator's state must not change
        torch.manual_seed(int(stream(SEED, Purpose.CLASSIFIER).integers(2**63)))
        network = Network(pixels.shape[1], num_classes + robust * len(OTHER_THINGS))
    data_crc32 = tensors_crc32([labels, pixels])
    file = INCLUDED / f"{data.dataset}_{kind}.npz"
    if not file.exists() or read_npz(file)["data_crc32"] != data_crc32:
        settings = f"{steps} {BATCH_SIZE} {LEARNING_RATE} {SHIFT}"
        if robust:
            settings += f" {MOST_BLUR} {MOST_NOISE} {FAKES} {OTHER_THINGS}"
        key = zlib.crc32(settings.encode(), data_crc32)
        file = make_directory(directory, "classifier") / f"{kind}_{key:08x}.npz"
        if not file.exists():
            _train(network.to(device), pixels, labels, steps, num_classes if robust else None)
            weights = {name: value.cpu().numpy() for name, value in network.state_dict().items()}
            with atomic_write(file) as temporary:
                np.savez(temporary, data_crc32=data_crc32, **weights)
    state = read_npz(file)
    state.pop("data_crc32")
    network.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    accuracy = _accuracy(network.to(device).eval(), *_read(data, "held_out"))
    print(f"{kind}: {accuracy:.2%} of held-out images right", flush=True)
    features = ClassifierFeatures(network, device, kind, accuracy)
    if robust:
        variance = np.concatenate([features(batch) for batch in pixels.split(1000)]).var(0).sum()
        features.scale = float(10 / np.sqrt(variance))
    return features


def _read(data: ConfigDict, split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 (N, C, H, W) and int64 (N,). The data sets that have labels fit into memory."""
    source, labels = load_labelled(data, split)
    return torch.from_numpy(all_pixels(source)), torch.from_numpy(labels)


def _train(
    network: Network,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    steps: int,
    first_other: int | None,
) -> None:
    """Cross-entropy with a one-cycle learning rate; a step's batch and augmentation are a function
    of its number.

    first_other: the first of the robust classifier's further classes.
    """
    device = next(network.parameters()).device
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    network.train()
    with progress_bar(steps, "step", "training the classifier") as bar:
        for step in range(1, steps + 1):
            rng = stream(SEED, Purpose.CLASSIFIER, step)
            chosen = torch.from_numpy(rng.integers(len(pixels), size=BATCH_SIZE))
            offsets = rng.integers(2 * SHIFT + 1, size=(BATCH_SIZE, 2))
            u = _shifted(pixels[chosen].to(device).float() / 255, offsets)
            classes = labels[chosen].to(device)
            if first_other is not None:
                u, classes = _with_other_things(u, classes, first_other, rng)
            loss = F.cross_entropy(network(u), classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update()


def _with_other_things(
    u: torch.Tensor, classes: torch.Tensor, first_other: int, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch with `FAKES` pictures of each further class added, half of all blurred, half noisy.

    Within a batch, so that batch normalisation cannot undo it.
    """
    images, labels = [u], [classes]
    for label, name in enumerate(OTHER_THINGS, start=first_other):
        chosen = torch.from_numpy(rng.permutation(len(u))[:FAKES])
        images.append(CORRUPTIONS[name](u[chosen], rng))
        labels.append(torch.full_like(classes[:FAKES], label))
    batch = torch.cat(images)
    for part in torch.from_numpy(rng.permutation(len(batch))).split(FAKES):
        if rng.random() < 0.5:
            batch[part] = blur(batch[part], rng.uniform(0.1, MOST_BLUR))
        if rng.random() < 0.5:
            batch[part] = noise(batch[part], rng.uniform(0, MOST_NOISE), rng)
    return batch, torch.cat(labels)


def _shifted(u: torch.Tensor, offsets: np.ndarray) -> torch.Tensor:
    """Each image shifted by its row of offsets (B, 2), where (SHIFT, SHIFT) is no shift; edges are
    repeated.
    """
    height, width = u.shape[2:]
    padded = F.pad(u, (SHIFT,) * 4, mode="replicate")
    shifted = [
        image[:, y : y + height, x : x + width]
        for image, (y, x) in zip(padded, offsets.tolist(), strict=True)
    ]
    return torch.stack(shifted)


@torch.no_grad()
def _accuracy(network: Network, pixels: torch.Tensor, labels: torch.Tensor) -> float:
    device = next(network.parameters()).device
    predicted = [
        network(batch.to(device).float() / 255).argmax(1).cpu() for batch in pixels.split(1000)
    ]
    return float((torch.cat(predicted) == labels).double().mean())
