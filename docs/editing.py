"""The tables and pictures of docs/editing.md: python docs/editing.py RUN OUT [STEPS [COUNT]].

All held-out pictures of the run's data, or COUNT of them, made small and large again, and with a
mask filled in. Per picture: the signal to noise ratio and the structural similarity of one sample
and of the mean of eight, beside interpolation and beside the same steps without correction; of
digits, in how many the included classifier sees what it sees in the original.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import avg_pool2d
from torchvision.transforms.functional import gaussian_blur

from model_code.observation import BlockMeans, agree
from scripts.data.datasets import load_images
from scripts.evaluation.classifier import classifier_features
from scripts.sampling.choice import Choice
from scripts.sampling.editing import bicubic, level_of_factor
from scripts.sampling.output import save_png
from scripts.sampling.sampler import Sampler, load_sampler
from scripts.storage.checkpoint import saved_config

SAMPLES = 8
SHOWN = 10


def psnr(images: torch.Tensor, originals: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """In dB, of the pixels in `where` (H, W): (N,)."""
    square = (images - originals)[:, :, where].square().mean((1, 2))
    return -10 * square.clamp(min=1e-10).log10()


def ssim(images: torch.Tensor, originals: torch.Tensor) -> torch.Tensor:
    """Structural similarity (Wang et al., 2004) in windows of 11 pixels, sigma 1.5: (N,)."""

    def local(u: torch.Tensor) -> torch.Tensor:
        return gaussian_blur(u, [11, 11], [1.5, 1.5])

    x, y = local(images), local(originals)
    xx, yy = local(images**2) - x**2, local(originals**2) - y**2
    xy = local(images * originals) - x * y
    c1, c2 = 0.01**2, 0.03**2
    index = (2 * x * y + c1) * (2 * xy + c2) / ((x**2 + y**2 + c1) * (xx + yy + c2))
    return index.mean((1, 2, 3))


def shown(values: torch.Tensor, digits: int = 2) -> str:
    """Mean and standard error over pictures."""
    return f"{values.mean():.{digits}f} +- {values.std() / len(values) ** 0.5:.{digits}f}"


def same_class(images: torch.Tensor, originals: torch.Tensor, network: nn.Module | None) -> str:
    """Return the share of images in which the classifier sees what it sees in the original."""
    if network is None:
        return ""
    with torch.no_grad():
        same = (network(images).argmax(1) == network(originals).argmax(1)).float()
    return f"{100 * same.mean():.1f}% +- {100 * same.std() / len(same) ** 0.5:.1f}"


def row(
    name: str,
    images: torch.Tensor,
    originals: torch.Tensor,
    base: torch.Tensor,
    where: torch.Tensor,
    network: nn.Module | None,
) -> None:
    """Print a line of a table; base: what the difference is from."""
    quality = psnr(images, originals, where)
    gain = shown(quality - psnr(base, originals, where))
    similarity, same = ssim(images, originals), same_class(images, originals, network)
    print(f"| {name} | {shown(quality)} | {gain} | {shown(similarity, 3)} | {same} |", flush=True)


def enlarge(
    sampler: Sampler, originals: torch.Tensor, factor: int, out: Path, network: nn.Module | None
) -> None:
    """Super-resolution by a factor."""
    small = (avg_pool2d(originals, factor) * 255).round() / 255
    everywhere = torch.ones(originals.shape[2:], dtype=torch.bool)
    interpolated = bicubic(small, factor)
    start = time.perf_counter()
    samples = sampler.super_resolve(small, SAMPLES)
    seconds = (time.perf_counter() - start) / len(samples) / SAMPLES
    again = avg_pool2d((samples[:, 0] * 255).round(), factor) - 255 * small
    off = f"reduced again within {again.abs().max():.2f} grey levels"
    print(f"\nfactor {factor}: {seconds:.3f} s a sample, {off}\n")
    print("| | PSNR, dB | above bicubic, dB | SSIM | same class |\n|---|---|---|---|---|")
    row("bicubic", interpolated, originals, interpolated, everywhere, network)
    projected = agree(BlockMeans(small, factor), interpolated)
    row("bicubic, projected", projected, originals, interpolated, everywhere, network)
    plain = sampler.from_images(interpolated, level=level_of_factor(sampler, factor))[:, 0]
    row("without correction", plain, originals, interpolated, everywhere, network)
    row("one sample", samples[:, 0], originals, interpolated, everywhere, network)
    row(f"mean of {SAMPLES}", samples.mean(1), originals, interpolated, everywhere, network)
    rows = np.linspace(0, len(originals) - 1, SHOWN).astype(int)
    large = small.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    columns = [large, interpolated, *samples[:, :2].unbind(1), samples.mean(1), originals]
    save_png(out / f"factor_{factor}.png", torch.stack(columns, 1)[rows].flatten(0, 1), 6)
    wide = torch.cat([columns[i][rows] for i in (0, 1, 2, 5)])
    save_png(out / f"factor_{factor}_wide.png", wide, SHOWN)


def fill(
    sampler: Sampler, originals: torch.Tensor, name: str, out: Path, network: nn.Module | None
) -> None:
    """Inpainting of the right half or of a quarter in the middle."""
    size = originals.shape[-1]
    unknown = torch.zeros(size, size, dtype=torch.bool)
    if name == "half":
        unknown[:, size // 2 :] = True
    else:
        unknown[size // 4 : size // 4 + size // 2, size // 4 : size // 4 + size // 2] = True
    start = time.perf_counter()
    samples = sampler.inpaint(originals, unknown, SAMPLES)
    seconds = (time.perf_counter() - start) / len(samples) / SAMPLES
    mean = originals[..., ~unknown].mean(-1)[..., None, None]
    flat = torch.where(unknown, mean, originals)
    print(f"\n{name}: {seconds:.3f} s a sample; PSNR of the pixels that are made\n")
    print("| | PSNR, dB | above the mean, dB | SSIM | same class |\n|---|---|---|---|---|")
    row("the mean of what is known", flat, originals, flat, unknown, network)
    row("one sample", samples[:, 0], originals, flat, unknown, network)
    row(f"mean of {SAMPLES}", samples.mean(1), originals, flat, unknown, network)
    rows = np.linspace(0, len(originals) - 1, SHOWN).astype(int)
    masked = torch.where(unknown, torch.full_like(originals, 0.5), originals)
    columns = [masked, *samples[:, :3].unbind(1), samples.mean(1), originals]
    save_png(out / f"{name}.png", torch.stack(columns, 1)[rows].flatten(0, 1), 6)


def main(run: Path, out: Path, steps: str = "", count: str = "") -> None:
    """Print all tables, write the pictures."""
    out.mkdir(parents=True, exist_ok=True)
    config = saved_config(run, 0)
    sampler, _ = load_sampler(run, choice=Choice(delta="calibrated", steps=steps or None))
    source = load_images(config.data, "held_out")
    rows = np.linspace(0, len(source) - 1, int(count or len(source))).astype(int)
    pixels = np.stack([source[int(i)] for i in rows])
    originals = torch.from_numpy(pixels).float() / 255
    network = None
    if config.data.dataset == "mnist5k":
        network = classifier_features(out, config.data, torch.device("cpu")).network
    for factor in (2, 4):
        enlarge(sampler, originals, factor, out, network)
    for name in ("half", "quarter"):
        fill(sampler, originals, name, out, network)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
