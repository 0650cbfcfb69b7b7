"""Measures of the images themselves, without a feature network: variances by frequency, distances
from training images, and how much samples of one initial image differ.

Images are uint8 (N, C, H, W). Samples that share an initial image are not independent: `groups`,
int64 (N,), says which do.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from model_code.dct import dct2
from model_code.spectrum import DCTMoments, bin_sums, radii_of
from scripts.data.datasets import Split, load_images
from scripts.data.images import spread_evenly
from scripts.data.loader import Batch, OrderedBatches, Reading, to_unit_range
from scripts.estimate import Estimate, count
from scripts.evaluation.results import Result
from scripts.runtime import distributed
from scripts.runtime.progress import progress_bar
from scripts.runtime.randomness import Purpose, stream
from scripts.sampling.output import grid, to_uint8
from scripts.sampling.sampler import Sampler

MOST_BYTES = 1 << 30
"""Of a split in memory: so many of its images, spread evenly."""
BLOCK_BYTES = 1 << 25
"""Images in float32 at a time; a few times as much memory is used."""
REPLICATES = 1000
"""Bootstrap samples."""
LOG_BINS = 48
NO_VARIANCE = 1e-12
"""A smaller variance counts as this, so that logarithms exist; rounding to 8 bits alone makes
1.3e-6.
"""
NEAR = 0.01
"""Samples are compared with the distance that this fraction of held-out images is below."""
SPACES = {"": "pixels", "LowPass": "low-pass"}
"""Where distances are measured, by what names of scores end in."""
COLUMNS = 12
"""Samples in the picture of the nearest training images."""


# --- samples and data ---


@dataclass(frozen=True)
class PixelInputs:
    """What a measure of pixels may use. Every process has all of it."""

    samples: np.ndarray
    groups: np.ndarray
    data: ConfigDict
    seed: int
    device: torch.device
    starts: np.ndarray | None = None
    """The position of the training image that each sample started from, int64 (N,); None if it
    started from something else."""
    sampler: Sampler | None = None
    """Where the samples come from, if a model of ours made them."""
    read: dict[str, int] = field(default_factory=dict)
    """Checksums of the images of each split that was read, under "train_crc32" and
    "held_out_crc32".
    """

    def in_memory(self, split: Split) -> np.ndarray:
        """Return the images of a split, at most 1 GiB of them. A collective function."""
        source, workers = load_images(self.data, split), self.data.num_workers
        number = min(len(source), MOST_BYTES // int(np.prod(source.shape)))
        batches = OrderedBatches(source, block_size(source.shape), workers, False, number)
        read = self._read(batches, split, f"{split} images")
        return distributed.gather_rows(torch.cat([to_uint8(each.images) for each in read])).numpy()

    def training_blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Positions and images of the training set, with mirror images if training mirrors them;
        each process has a part.

        A collective function, when all are read.
        """
        source, mirrored = load_images(self.data, "train"), self.data.random_flip
        workers, at_a_time = self.data.num_workers, block_size(source.shape)
        batches = OrderedBatches(source, at_a_time, workers, False, mirrored=mirrored)
        with progress_bar(len(batches.chosen), "image", "comparing with training images") as bar:
            for batch in self._read(batches, "train", "training images"):
                yield batch.indices.numpy(), to_uint8(batch.images).numpy()
                bar.update(len(batch.indices) // (1 + mirrored))

    def _read(self, batches: Iterable[Batch], split: Split, what: str) -> Iterator[Batch]:
        reading = Reading(what)
        yield from reading.batches(batches)
        self.read[f"{split}_crc32"] = reading.crc32


def block_size(shape: tuple[int, ...]) -> int:
    """Return how many images of a shape (C, H, W) are little in memory."""
    return max(1, BLOCK_BYTES // (4 * int(np.prod(shape))))


def blocks(images: np.ndarray) -> Iterator[slice]:
    """Slices of images, of `block_size` each."""
    size = block_size(images.shape[1:])
    return (slice(start, start + size) for start in range(0, len(images), size))


# --- the bootstrap ---


def weighted_mean(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Means of rows (N, ...) with weights (R, N): float64 (R, ...)."""
    return np.tensordot(weights / weights.sum(1, keepdims=True), rows, 1)


def weighted_median(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Medians of values (N,) with weights (R, N): float64 (R,)."""
    order = values.argsort()
    below = (row[order].cumsum() for row in weights)
    return np.array([values[order[each.searchsorted(each[-1] / 2)]] for each in below])


def bootstrap(
    statistic: Callable[[np.ndarray, np.ndarray], np.ndarray],
    rows: np.ndarray,
    seed: int,
    number: int = 0,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """Return a statistic of rows (N, ...), by weight, for 1,000 sets of groups drawn with
    replacement: float64 (1000, ...).

    A function of seed and number. Groups None: every row is one. A single group has no spread: all
    is NaN.
    """
    members = np.arange(len(rows)) if groups is None else np.unique(groups, return_inverse=True)[1]
    G = members.max() + 1
    rng = stream(seed, Purpose.BOOTSTRAP, number)
    counts = rng.multinomial(G, np.full(G, 1 / G), size=REPLICATES)
    replicates = statistic(rows, counts[:, members])
    return replicates if G > 1 else np.full_like(replicates, np.nan)


def interval(replicates: np.ndarray) -> np.ndarray:
    """Return both ends of the 95% interval (percentiles) along the first axis: (2, ...)."""
    return np.quantile(replicates, [0.025, 0.975], axis=0)


def bootstrap_result(
    score: str, value: float, replicates: np.ndarray, inputs: PixelInputs, settings: dict[str, Any]
) -> Result:
    """Return a score whose error and interval are of replicates; a single group has neither."""
    error = float(replicates.std(ddof=1))
    estimate = Estimate(value, error, len(inputs.samples), count(inputs.groups))
    if not math.isfinite(error):
        return Result(score, estimate, settings)
    low, high = interval(replicates).tolist()
    return Result(score, estimate, settings, (min(low, value), max(high, value)))


# --- radial bins and octaves ---


def bin_means(values: torch.Tensor, bins: torch.Tensor) -> torch.Tensor:
    """Averages over the frequencies in each bin, none of which is empty: (..., H, W) to float64
    (..., R).
    """
    return bin_sums(values, bins) / bins.flatten().bincount().to(values.device)


def radial_bins(height: int, width: int) -> torch.Tensor:
    """Bins for a radially averaged spectrum: 0 the constant, then 48 spaced evenly in log, or one a
    radius: int64 (H, W).

    Radii are rounded where there are fewer than 48. Bins that would be empty are left out.
    """
    radii = radii_of(height, width)
    largest = radii.max().item()
    if largest < LOG_BINS:
        return radii.round().long().unique(return_inverse=True)[1]
    place = radii.clamp(min=1).log() / math.log(largest) * LOG_BINS
    bins = torch.where(radii == 0, 0, 1 + place.long().clamp(max=LOG_BINS - 1))
    return bins.unique(return_inverse=True)[1]


def octaves(height: int, width: int) -> torch.Tensor:
    """Return the octave of each frequency: int64 (H, W). i has wavelengths of 2^(i + 1) up to 2^(i
    + 2) pixels of the longer axis, 0 also the shorter ones of diagonals; the constant comes last.
    """
    longer, radii = max(height, width), radii_of(height, width)
    index = (longer / radii.clamp(min=1)).log2().floor().clamp(min=0).long()
    return torch.where(radii == 0, index.max() + 1, index)


def octave_names(num_octaves: int) -> list[str]:
    """Octaves by their wavelengths in pixels, the finest first, and the constant."""
    return [f"{2 ** (i + 1)}-{2 ** (i + 2)} px" for i in range(num_octaves - 1)] + ["constant"]


def low_pass(octave: torch.Tensor) -> torch.Tensor:
    """Of octaves those that a low-pass keeps: wavelengths of 8 pixels and more; in tiny images all
    but the finest. Bool.
    """
    return octave >= min(2, int(octave.max()) - 1)


def plot_octaves(
    axes: Axes, series: Mapping[str, Sequence[np.ndarray]], ylabel: str, line: float
) -> None:
    """Draw values of octaves (R,), some with the ends of their intervals, the last first; and a
    horizontal line.
    """
    for shift, (label, (values, *ends)) in enumerate(series.items()):
        errors = [abs(end - values)[::-1] for end in ends] or None
        x = np.arange(len(values)) + shift / 15
        axes.errorbar(x, values[::-1], errors, fmt="o-", ms=3, lw=1, capsize=2, label=label)
    names = octave_names(len(values))[::-1]
    axes.axhline(line, color="gray", lw=1)
    axes.set_xticks(range(len(names)), names, fontsize="small")
    axes.set(xlabel="wavelength", ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


# --- spectrum: does every scale vary as much in samples as in the data? ---


def deviation_powers(deviations: torch.Tensor, bins: Sequence[torch.Tensor]) -> np.ndarray:
    """Squared DCT coefficients of (B, C, H, W), summed over channels and over each bin: float64 (B,
    R).

    bins: int64 (H, W) each; R counts the bins of all of them.
    """
    power = dct2(deviations).square().sum(1)
    return torch.cat([bin_sums(power, each) for each in bins], -1).cpu().numpy()


def powers(
    images: np.ndarray,
    bins: Sequence[torch.Tensor],
    device: torch.device,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """For each of at least 2 images uint8 (N, C, H, W) what the variance, summed over a bin, is the
    mean of: float64 (N, R).

    That is N / (N - 1) times `deviation_powers` from the mean image. With groups, int64 (N,), the
    variance is half the mean square of differences between images of different groups, which is
    unbiased where images of one group are alike.
    """
    N, mean = len(images), torch.from_numpy(images.mean(0, dtype=np.float64) / 255).float()

    def from_mean(images: np.ndarray) -> np.ndarray:
        parts = (to_unit_range(images[rows]) - mean for rows in blocks(images))
        return np.concatenate([deviation_powers(part.to(device), bins) for part in parts])

    own = from_mean(images)
    if groups is None or count(groups) in (1, N):
        return own * (N / (N - 1))
    _, members, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    of_group = np.split(members.argsort(kind="stable"), sizes.cumsum()[:-1])
    means = np.stack([images[rows].mean(0, dtype=np.float32) for rows in of_group])
    of_means = from_mean(means / np.float32(255))
    n = sizes[members][:, None]
    return ((N - n) * own + n * of_means[members]) * (N / (N**2 - (sizes**2).sum()))


def compare(
    samples: np.ndarray,
    reference: np.ndarray,
    num_radial: int,
    seed: int,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """Spectra of samples and reference, `powers` (N, R) and (M, R), of which `num_radial` are
    radial bins, then octaves.

    Values and standard errors by bootstrap over the images of both, or over the samples' groups,
    int64 (N,), float64 (2, 2 + octaves): log-spectral distance in dB (root mean square over
    radial bins but the constant), ratio of total variances, 10 log10 of that by octave, finest
    first. Errors are NaN with a single group.
    """

    def statistics(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        """Compare powers by bin (..., R) of two sets: (..., 2 + octaves)."""
        ours, theirs = np.maximum(ours, NO_VARIANCE), np.maximum(theirs, NO_VARIANCE)
        decibels = 10 * np.log10(ours / theirs)
        distance = np.sqrt((decibels[..., 1:num_radial] ** 2).mean(-1, keepdims=True))
        total, reference = (
            each[..., num_radial:].sum(-1, keepdims=True) for each in (ours, theirs)
        )
        return np.concatenate([distance, total / reference, decibels[..., num_radial:]], -1)

    replicates = statistics(
        bootstrap(weighted_mean, samples, seed, 0, groups),
        bootstrap(weighted_mean, reference, seed, 1),
    )
    values = statistics(samples.mean(0), reference.mean(0))
    return np.stack([values, replicates.std(0, ddof=1)])


def spectrum(inputs: PixelInputs) -> list[Result]:
    """Log-spectral distance and ratio of variances from the training images, beside those of as
    many held-out images.
    """
    size, real = inputs.samples.shape[2:], inputs.in_memory("held_out")
    number = min(len(real), len(inputs.samples))
    bins = [radial_bins(*size), octaves(*size)]
    num_radial = int(bins[0].max()) + 1
    seed, groups, device = inputs.seed, inputs.groups, inputs.device
    ours = powers(inputs.samples, bins, device, groups)
    held_out = powers(real[spread_evenly(len(real), number)], bins, device)
    training = powers(inputs.in_memory("train"), bins, device)
    of_samples = compare(ours, training, num_radial, seed, groups)
    of_held_out = compare(held_out, training, num_radial, seed)
    as_many = compare(ours[:number], training, num_radial, seed)
    settings: dict[str, Any] = {"training_images": len(training), "held_out_images": number}
    tables = {
        "by_octave": of_samples,
        "held_out_by_octave": of_held_out,
        "by_octave_against_held_out": compare(ours, held_out, num_radial, seed, groups),
    }
    for key, table in tables.items():
        decibels, errors = table[:, 2:].tolist()
        rows = list(zip(octave_names(len(decibels)), decibels, errors, strict=True))
        settings[key] = {
            name: {"ratio": 10 ** (dB / 10), "dB": dB, "standard_error_dB": error}
            for name, dB, error in rows
        }
        line = ", ".join(f"{name} {dB:+.2f} +- {error:.2f}" for name, dB, error in rows[::-1])
        print(f"{key}, dB: {line}", flush=True)
    results = []
    for i, score in enumerate(("LogSpectralDistance", "VarianceRatio")):
        value, error = of_samples[:, i].tolist()
        own = {
            "held_out": float(of_held_out[0, i]),
            "held_out_standard_error": float(of_held_out[1, i]),
            "value_at_held_out_images": float(as_many[0, i]),
        }
        estimate = Estimate(value, error, len(ours), count(groups))
        results.append(Result(score, estimate, settings | own))
    spectra = {"samples": ours, "held out": held_out, "training": training}
    picture = draw_spectra(bins[0], spectra, of_samples, of_held_out)
    total, mean = (each[:, num_radial:].sum(1) for each in (ours, training))
    per_image = total / mean.mean()
    return [replace(results[0], picture=picture), replace(results[1], per_image=per_image)]


def draw_spectra(
    bins: torch.Tensor,
    spectra: dict[str, np.ndarray],
    of_samples: np.ndarray,
    of_held_out: np.ndarray,
) -> Figure:
    """Return a picture of the spectra by radius and, with two standard errors, of log ratios by
    octave.
    """
    picture = Figure(figsize=(10, 4), layout="constrained")
    left, right = picture.subplots(1, 2)
    radii = bin_means(radii_of(*bins.shape), bins).numpy()
    sizes = bins.flatten().bincount().numpy()
    for label, rows in spectra.items():
        mean = rows[:, : len(radii)].mean(0) / sizes
        left.loglog(radii[1:], mean[1:], label=f"{label}, N = {len(rows)}", lw=1)
    left.set(xlabel="radius of frequencies", ylabel="variance of a DCT coefficient")
    left.grid(alpha=0.3, which="both")
    left.legend(fontsize="small")
    tables = {"samples": of_samples, "held out": of_held_out}
    series = {
        label: value[2:] + np.outer([0, -2, 2], error[2:])
        for label, (value, error) in tables.items()
    }
    plot_octaves(right, series, "variance over that of training images, dB", 0)
    return picture


# --- copying: do samples repeat training images? ---


def in_spaces(images: np.ndarray, device: torch.device) -> list[torch.Tensor]:
    """In each of `SPACES` coordinates of images uint8 (B, C, H, W), from values in [0, 1]: float64
    (B, d), DCT coefficients but the mean of each channel, all of them and those that a low-pass
    keeps.
    """
    octave = octaves(*images.shape[2:]).to(device)
    varying = octave < octave.max()
    coefficients = dct2(torch.from_numpy(images).to(device).double() / 255)
    return [coefficients[..., one].flatten(1) for one in (varying, varying & low_pass(octave))]


def nearest_training_images(
    images: np.ndarray, training: Iterable[tuple[np.ndarray, np.ndarray]], device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """In each of `SPACES` the distance of images uint8 (Q, C, H, W) from the nearest of `training`,
    float64 (2, Q), and that one's position, int64 (2, Q).

    training: positions int64 (B,) and images uint8 (B, C, H, W), a block at a time; only one is in
    memory. Of several processes each has its own blocks, and all get the result. A collective
    function.
    """
    shape = (len(SPACES), len(images))
    least = torch.full(shape, torch.inf, dtype=torch.float64, device=device)
    nearest = torch.zeros(shape, dtype=torch.int64, device=device)
    for positions, block in training:
        if len(block) == 0:  # a process may have none
            continue
        theirs, position = in_spaces(block, device), torch.from_numpy(positions).to(device)
        for rows in blocks(images):
            pairs = zip(in_spaces(images[rows], device), theirs, strict=True)
            for space, (x, y) in enumerate(pairs):
                # Float64 by matrix products is exact to far less than a grey level.
                distance, index = torch.cdist(x, y).min(1)
                nearer = distance < least[space, rows]
                nearest[space, rows] = torch.where(nearer, position[index], nearest[space, rows])
                least[space, rows] = torch.minimum(distance, least[space, rows])
    distances, process = torch.stack(distributed.gather(least.cpu())).min(0)
    of_processes = torch.stack(distributed.gather(nearest.cpu()))
    return distances.numpy(), of_processes.gather(0, process[None])[0].numpy()


def ratio_of_medians(
    samples: np.ndarray, held_out: np.ndarray, seed: int, groups: np.ndarray | None = None
) -> tuple[float, np.ndarray]:
    """Return the median of distances (N,) over that of (M,), near 0 for copies, and 1,000 values by
    bootstrap over both.

    groups: int64 (N,), of samples that are not independent.
    """
    ours = bootstrap(weighted_median, samples, seed, 0, groups)
    theirs = bootstrap(weighted_median, held_out, seed, 1)
    return float(np.median(samples) / np.median(held_out)), ours / theirs


def nearer_than_held_out(
    samples: np.ndarray, held_out: np.ndarray, seed: int, groups: np.ndarray | None = None
) -> tuple[float, np.ndarray]:
    """Return the fraction of samples at less than the distance that `NEAR` of held-out images are
    below, and 10,000 draws of it.

    Draws count both errors: the number of held-out images below the true quantile is binomial, so
    the threshold is drawn from that distribution, and for each threshold the fraction is drawn from
    its posterior under Jeffreys' prior (a bootstrap of no sample below it would have no spread).
    Samples in groups count as the independent ones that the fraction's error corresponds to; draws
    from a single group are NaN.
    """
    N, M, size = len(samples), len(held_out), 10 * REPLICATES
    rng = stream(seed, Purpose.BOOTSTRAP, 2)
    rank = rng.binomial(M, NEAR, size) + rng.random(size)  # uniform between neighbours
    thresholds = np.interp(rank, np.arange(M + 1), [0.0, *np.sort(held_out)])
    below = np.searchsorted(np.sort(samples), thresholds)
    threshold = np.quantile(held_out, NEAR, method="weibull")
    share = Estimate.of(torch.from_numpy(samples < threshold), groups)
    if share.num_groups == 1:
        return share.value, np.full(size, np.nan)
    part = min(1.0, share.effective_count() / N)
    return share.value, rng.beta(part * below + 0.5, part * (N - below) + 0.5)


def copying(inputs: PixelInputs) -> list[Result]:
    """Return how near samples are to training images; where they start from such images, how often
    to their own.
    """
    N, results = len(inputs.samples), list[Result]()
    images = np.concatenate([inputs.samples, inputs.in_memory("held_out")])
    distances, nearest = nearest_training_images(images, inputs.training_blocks(), inputs.device)
    for suffix, distance, positions in zip(SPACES, distances, nearest[:, :N], strict=True):
        ours, held_out = distance[:N], distance[N:]
        settings = {
            "median": float(np.median(ours)),
            "held_out_median": float(np.median(held_out)),
            "held_out_images": len(held_out),
        }
        measures = {"NearestRatio": ratio_of_medians, "NearerThanHeldOut": nearer_than_held_out}
        for score, measure in measures.items():
            value, replicates = measure(ours, held_out, inputs.seed, inputs.groups)
            results.append(bootstrap_result(score + suffix, value, replicates, inputs, settings))
        if inputs.starts is not None:
            own = Estimate.of(torch.from_numpy(positions == inputs.starts), inputs.groups)
            results.append(Result(f"NearestIsOwnInit{suffix}", own, settings, own.wilson()))
    results[0] = replace(results[0], picture=draw_nearest(inputs, distances[:, :N], nearest))
    return results


def draw_nearest(inputs: PixelInputs, distances: np.ndarray, nearest: np.ndarray) -> Figure:
    """Return a picture of the samples that are nearest to training images, in each space, above
    these images.
    """
    picture = Figure(figsize=(9, 4.2), layout="constrained")
    source = load_images(inputs.data, "train")
    for i, (space, axes) in enumerate(
        zip(SPACES.values(), picture.subplots(len(SPACES)), strict=True)
    ):
        first = distances[i].argsort(kind="stable")[:COLUMNS]
        originals = np.stack([source[int(position)] for position in nearest[i, first]])
        rows = np.concatenate([inputs.samples[first], originals])
        axes.imshow(grid(torch.from_numpy(rows) / 255, len(first)))
        title = f"{space}: samples nearest to a training image, and below each that image"
        axes.set_title(title, fontsize=9)
        axes.axis("off")
    return picture


# --- diversity: how much do samples of one initial image differ, and how much initial images? ---


def variance_components(
    images: np.ndarray, per_init: int, bins: torch.Tensor, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Variance within and between initial images, summed over the frequencies of each bin, int64
    (H, W): float64 (S, R) each.

    images: uint8 (S * M, C, H, W), M = `per_init` in a row from each initial image, S and M at
    least 2. Means over initial images are unbiased (analysis of variance with random effects): the
    variance of their samples' means is that between them and an M-th of that within.
    """
    within, means = [], []
    for start in range(0, len(images), per_init):
        u = to_unit_range(images[start : start + per_init]).to(device)
        means.append(u.mean(0))
        within.append(deviation_powers(u - means[-1], [bins]).sum(0) / (per_init - 1))
    deviations = torch.stack(means) - torch.stack(means).mean(0)
    of_means = deviation_powers(deviations, [bins]) * (len(means) / (len(means) - 1))
    return np.stack(within), of_means - np.stack(within) / per_init


def predicted_within(
    data: torch.Tensor, first: torch.Tensor, std: float, bins: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Return which share of a bin's variance linear-Gaussian models leave to the samples of one
    initial image: float64 (R,), two of them.

    data, first: variances of DCT coefficients of images and of their first states' means, float64
    (C, H, W); std: of the noise on those. One is 1 - first / data, what first states do not hand
    over, for heat 1 - exp(-2 lambda t_K) in each frequency. The other is what an ideal reverse
    process leaves, which reads all that exceeds the noise: std^2 / (first + std^2).
    """
    total, noise = bin_sums(data.sum(0), bins), max(std, 1e-12) ** 2
    ideal = bin_sums((data * noise / (first + noise)).sum(0), bins)
    return (1 - bin_sums(first.sum(0), bins) / total).numpy(), (ideal / total).numpy()


def diversity(inputs: PixelInputs) -> list[Result]:
    """Variance within initial images, between them and their sum over that of training images; per
    pixel and after a low-pass.
    """
    sampler, bins = inputs.sampler, octaves(*inputs.samples.shape[2:])
    assert sampler is not None
    assert sampler.initial_images is not None
    data, first, std = moments(sampler, inputs.in_memory("train"))
    total = bin_sums(data.sum(0), bins).numpy()
    per_init = sampler.initial_images.per_image
    within, between = variance_components(inputs.samples, per_init, bins, inputs.device)
    parts = np.stack([within, between, within + between], 1) / total  # (S, 3, R)
    means, replicates = parts.mean(0), bootstrap(weighted_mean, parts, inputs.seed)
    share, share_ends = means[0] / means[2], interval(replicates[:, 0] / replicates[:, 2])
    not_handed_over, ideal = predicted_within(data, first, std, bins)
    columns = {
        "share": share,
        "interval_95": share_ends.T,
        "not_handed_over": not_handed_over,
        "ideal": ideal,
    }
    by_octave = {
        name: {key: column[i].tolist() for key, column in columns.items()}
        for i, name in enumerate(octave_names(len(total)))
    }
    scores = ("WithinInit", "BetweenInits", "WithinAndBetween")
    results, settings = [], {"within_by_octave": by_octave}
    octave = torch.arange(len(total))
    for suffix, counted in (("", octave >= 0), ("LowPass", low_pass(octave))):
        weights = np.where(counted, total, 0)
        weights /= weights.sum()
        for i, score in enumerate(scores):
            value, spread = float(means[i] @ weights), replicates[:, i] @ weights
            results.append(bootstrap_result(score + suffix, value, spread, inputs, settings))
    picture = Figure(figsize=(10, 4), layout="constrained")
    left, right = picture.subplots(1, 2)
    variances = {score: [means[i], *interval(replicates[:, i])] for i, score in enumerate(scores)}
    plot_octaves(left, variances, "variance over that of training images", 1)
    shares = {
        "samples": [share, *share_ends],
        "not handed over by the first state": [not_handed_over],
        "ideal linear-Gaussian reverse process": [ideal],
    }
    plot_octaves(right, shares, "share of the variance that is within initial images", 1)
    results[0] = replace(results[0], picture=picture)
    return results


def moments(sampler: Sampler, images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Variances of DCT coefficients of images and of their first states' means, and the noise on
    those, in units of images.
    """
    process, k, device = sampler.process, sampler.kernel.chain[0], sampler.precision.device
    data, first = (DCTMoments(*images.shape[1:]) for _ in range(2))
    for rows in blocks(images):
        u0 = to_unit_range(images[rows]).to(device)
        data.add(u0.cpu())
        first.add(process.to_images(process.mean_state(u0, k)).cpu())
    unit = process.to_images(torch.ones(1)) - process.to_images(torch.zeros(1))
    return data.variance, first.variance, sampler.prior_std * unit.item()
