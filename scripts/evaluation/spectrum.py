"""Does every scale vary as much in samples as in the data? Variances of DCT coefficients about the
mean image, by radius.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from model_code.dct import dct2
from model_code.spectrum import bin_means, bin_sums, octaves, radial_bins, radii_of
from scripts.data.loader import to_unit_range
from scripts.estimate import Estimate, count
from scripts.evaluation.pixels import PixelInputs, blocks, resampled_means
from scripts.evaluation.plots import plot_octaves
from scripts.evaluation.results import Result

NO_VARIANCE = 1e-12
"""A smaller variance counts as this, so that logarithms exist; rounding to 8 bits alone makes
1.3e-6.
"""
Y_CB_CR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
"""Luminance and chrominance as in JPEG (ITU-R BT.601)."""
PLANES = ("all", "red", "green", "blue", "luminance", "chrominance")
"""What spectra are of: the first of them of grey images (P = 1), all of colour (P = 6)."""


def deviation_powers(deviations: torch.Tensor, bins: Sequence[torch.Tensor]) -> np.ndarray:
    """Squared DCT coefficients of (B, C, H, W), summed over channels and over each bin: float64 (B,
    P, R).

    bins: int64 (H, W) each; R counts the bins of all of them.
    """
    coefficients = dct2(deviations)
    planes = [coefficients.square().sum(1, keepdim=True)]
    if deviations.shape[1] == 3:
        mixed = torch.einsum(
            "pc,bchw->bphw", torch.tensor(Y_CB_CR).to(deviations), coefficients
        ).square()
        planes += [coefficients.square(), mixed[:, :1], mixed[:, 1:].sum(1, keepdim=True)]
    return torch.cat([bin_sums(torch.cat(planes, 1), each) for each in bins], -1).cpu().numpy()


def powers(
    images: np.ndarray,
    bins: Sequence[torch.Tensor],
    device: torch.device,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """For each of at least 2 images uint8 (N, C, H, W) what the variance, summed over a bin, is the
    mean of: float64 (N, P, R).

    That is N / (N - 1) times `deviation_powers` from the mean image. With groups, int64 (N,), the
    variance is half the mean square of differences between images of different groups, which is
    unbiased where images of one group are alike.
    """
    N, mean = len(images), torch.from_numpy(images.mean(0, dtype=np.float64) / 255).float()

    def deviations(images: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [
                deviation_powers((to_unit_range(images[rows]) - mean).to(device), bins)
                for rows in blocks(images)
            ]
        )

    found = deviations(images)
    if groups is None or len(set(groups.tolist())) in (1, N):
        return found * (N / (N - 1))
    _, members, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    of_group = np.split(members.argsort(kind="stable"), sizes.cumsum()[:-1])
    of_means = deviations(np.stack([images[rows].mean(0, dtype=np.float32) for rows in of_group]))
    n = sizes[members][:, None, None]
    return ((N - n) * found + n * of_means[members]) * (N / (N**2 - (sizes**2).sum()))


def compare(
    samples: np.ndarray,
    reference: np.ndarray,
    num_radial: int,
    seed: int,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """Spectra of samples and reference, `powers` (N, P, R) and (M, P, R), of which `num_radial` are
    radial bins, then octaves.

    Values and standard errors by bootstrap over the images of both, or over the samples' groups,
    int64 (N,), float64 (2, P, 2 + octaves): log-spectral distance in dB (root mean square over
    radial bins but the constant), ratio of total variances, 10 log10 of that by octave, finest
    first. Errors are NaN with a single group.
    """

    def statistics(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        ours, theirs = np.maximum(ours, NO_VARIANCE), np.maximum(theirs, NO_VARIANCE)
        decibels = 10 * np.log10(ours / theirs)
        distance = np.sqrt((decibels[..., 1:num_radial] ** 2).mean(-1, keepdims=True))
        total = ours[..., num_radial:].sum(-1, keepdims=True) / theirs[..., num_radial:].sum(
            -1, keepdims=True
        )
        return np.concatenate([distance, total, decibels[..., num_radial:]], -1)

    drawn = statistics(
        resampled_means(samples, seed, 0, groups), resampled_means(reference, seed, 1)
    )
    return np.stack([statistics(samples.mean(0), reference.mean(0)), drawn.std(0, ddof=1)])


def octave_names(octave: torch.Tensor) -> list[str]:
    """Octaves by their wavelengths in pixels, the finest first, and the constant."""
    return [f"{2 ** (i + 1)}-{2 ** (i + 2)} px" for i in range(int(octave.max()))] + ["constant"]


def low_pass(octave: torch.Tensor) -> torch.Tensor:
    """Of octaves those that a low-pass keeps: wavelengths of 8 pixels and more; in tiny images all
    but the finest. Bool.
    """
    return octave >= min(2, int(octave.max()) - 1)


def spectrum(inputs: PixelInputs) -> list[Result]:
    """Log-spectral distance and ratio of variances from the training images, beside those of as
    many held-out images.
    """
    N, size, real = len(inputs.samples), inputs.samples.shape[2:], inputs.in_memory("held_out")
    evenly = np.linspace(0, len(real) - 1, min(len(real), N)).astype(
        int
    )  # data sets may be sorted by class
    sets = {
        "samples": inputs.samples,
        "held out": real[evenly],
        "training": inputs.in_memory("train"),
    }
    bins = [radial_bins(*size), octaves(*size)]
    num_radial, names = int(bins[0].max()) + 1, octave_names(bins[1])
    seed, groups, device = inputs.sampler.seed, inputs.groups, inputs.sampler.precision.device
    of_set = {"samples": groups}
    spectra = {
        label: powers(images, bins, device, of_set.get(label)) for label, images in sets.items()
    }
    ours, held_out, training = spectra.values()
    found, against = (
        compare(ours, theirs, num_radial, seed, groups) for theirs in (training, held_out)
    )
    expected, as_many = (
        compare(some, training, num_radial, seed) for some in (held_out, ours[: len(held_out)])
    )
    settings: dict[str, Any] = {"training_images": len(training), "held_out_images": len(held_out)}
    for key, table in {
        "by_octave": found,
        "held_out_by_octave": expected,
        "by_octave_against_held_out": against,
    }.items():
        rows = list(zip(names, *table[:, 0, 2:].tolist(), strict=True))
        settings[key] = {
            name: {"ratio": 10 ** (dB / 10), "dB": dB, "standard_error_dB": error}
            for name, dB, error in rows
        }
        print(
            f"{key}, dB: "
            + ", ".join(f"{name} {dB:+.2f} +- {error:.2f}" for name, dB, error in rows[::-1]),
            flush=True,
        )
    ratio, results = ours[:, 0, num_radial:].sum(1) / training[:, 0, num_radial:].sum(1).mean(), []
    for i, score in enumerate(("LogSpectralDistance", "VarianceRatio")):
        values, (of_real, error) = found[0, :, i].tolist(), expected[:, 0, i].tolist()
        own = {
            "held_out": of_real,
            "held_out_standard_error": error,
            "value_at_held_out_images": float(as_many[0, 0, i]),
        }
        own |= {"by_plane": dict(zip(PLANES, values, strict=False))}
        estimate, picture = Estimate(values[0], float(found[1, 0, i]), N, count(groups)), None
        if i == 0:
            picture = draw(bins, spectra, found, expected)
        results.append(
            Result(score, estimate, settings | own, per_image=ratio if i else None, picture=picture)
        )
    return results


def draw(
    bins: list[torch.Tensor],
    spectra: dict[str, np.ndarray],
    found: np.ndarray,
    expected: np.ndarray,
) -> Figure:
    """A picture of the spectra by radius and, with two standard errors, of log ratios by octave; of
    colour by plane, too.
    """
    picture = Figure(figsize=(10, 4), layout="constrained")
    left, right = picture.subplots(1, 2)
    radii, sizes = (
        bin_means(radii_of(*bins[0].shape), bins[0])[1:],
        torch.bincount(bins[0].flatten())[1:],
    )
    for label, rows in spectra.items():
        left.loglog(
            radii,
            rows[:, 0].mean(0)[1 : 1 + len(radii)] / sizes.numpy(),
            label=f"{label}, N = {len(rows)}",
            lw=1,
        )
    left.set(xlabel="radius of frequencies", ylabel="variance of a DCT coefficient")
    left.grid(alpha=0.3, which="both")
    left.legend(fontsize="small")
    tables = {"samples": found[:, 0], "held out": expected[:, 0]}
    tables |= {
        f"samples, {plane}": found[:, i]
        for i, plane in enumerate(PLANES)
        if 4 <= i < found.shape[1]
    }
    series = {
        label: [value[2:], *(value + np.outer([-2, 2], error))[:, 2:]]
        for label, (value, error) in tables.items()
    }
    plot_octaves(
        right, octave_names(bins[1]), series, "variance over that of training images, dB", 0
    )
    return picture
