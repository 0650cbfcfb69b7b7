"""How much do the samples of one seed differ, and how much do seeds? M samples from each of S prior
states.
"""

import numpy as np
import torch
from matplotlib.figure import Figure

from model_code.spectrum import DCTMoments, bin_sums, octaves
from scripts.data.loader import to_unit_range
from scripts.estimate import Estimate
from scripts.evaluation.pixels import PixelInputs, blocks, interval, resampled_means
from scripts.evaluation.plots import plot_octaves
from scripts.evaluation.results import Result
from scripts.evaluation.spectrum import deviation_powers, low_pass, octave_names
from scripts.sampling.sampler import Sampler


def variance_components(
    images: np.ndarray, per_seed: int, bins: torch.Tensor, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Variance within and between seeds, summed over the frequencies of each bin, int64 (H, W):
    float64 (S, R) each.

    images: uint8 (S * M, C, H, W), M = `per_seed` in a row from each seed, S and M at least 2.
    Means over seeds are unbiased (analysis of variance with random effects): the variance of seeds'
    means is that between seeds and an M-th of that within.
    """
    within, means = [], []
    for start in range(0, len(images), per_seed):
        u = to_unit_range(images[start : start + per_seed]).to(device)
        means.append(u.mean(0))
        within.append(deviation_powers(u - means[-1], [bins])[:, 0].sum(0) / (per_seed - 1))
    deviations = torch.stack(means) - torch.stack(means).mean(0)
    of_means = deviation_powers(deviations, [bins])[:, 0] * (len(means) / (len(means) - 1))
    return np.stack(within), of_means - np.stack(within) / per_seed


def predicted_within(
    data: torch.Tensor, first: torch.Tensor, std: float, bins: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Which share of a bin's variance linear-Gaussian models leave to the samples of one seed:
    float64 (R,), two of them.

    data, first: variances of DCT coefficients of images and of their first states' means, float64
    (C, H, W); std: of the noise on those. One is 1 - first / data, what first states do not hand
    over, for heat 1 - exp(-2 lambda t_K) in each frequency. The other is what an ideal reverse
    process leaves, which reads all that exceeds the noise: std^2 / (first + std^2).
    """
    total, noise = bin_sums(data.sum(0), bins), max(std, 1e-12) ** 2
    ideal = bin_sums((data * noise / (first + noise)).sum(0), bins)
    return (1 - bin_sums(first.sum(0), bins) / total).numpy(), (ideal / total).numpy()


def diversity(inputs: PixelInputs) -> list[Result]:
    """Variance within seeds, between seeds and their sum over that of training images; per pixel
    and after a low-pass.
    """
    sampler, bins = inputs.sampler, octaves(*inputs.samples.shape[2:])
    assert isinstance(sampler, Sampler)
    assert sampler.initial_images is not None
    names, low = octave_names(bins), low_pass(torch.arange(int(bins.max()) + 1)).numpy()
    data, first, std = moments(sampler, inputs.in_memory("train"))
    total = bin_sums(data.sum(0), bins).numpy()
    both = variance_components(
        inputs.samples, sampler.initial_images.per_image, bins, sampler.precision.device
    )
    within, between = (part / total for part in both)
    parts = {"WithinSeeds": within, "BetweenSeeds": between, "WithinAndBetween": within + between}
    drawn = {
        score: resampled_means(part, sampler.seed) for score, part in parts.items()
    }  # the same seeds in all
    share = within.mean(0) / (within + between).mean(0)
    shares = {
        "samples": [share, *np.array(interval(drawn["WithinSeeds"] / drawn["WithinAndBetween"]))]
    }
    given, ideal = predicted_within(data, first, std, bins)
    shares |= {
        "not handed over by the first state": [given],
        "ideal linear-Gaussian reverse process": [ideal],
    }
    columns = {
        "share": share,
        "interval_95": np.transpose(shares["samples"][1:]),
        "not_handed_over": given,
        "ideal": ideal,
    }
    by_octave = {
        name: {key: column[i].tolist() for key, column in columns.items()}
        for i, name in enumerate(names)
    }
    settings, results = {"num_seeds": len(within), "within_by_octave": by_octave}, list[Result]()
    variances = {
        score: [part.mean(0), *np.array(interval(drawn[score]))] for score, part in parts.items()
    }
    for suffix, kept in (("", low | True), ("LowPass", low)):
        weights = np.where(kept, total, 0) / total[kept].sum()
        for score, part in parts.items():
            spread, picture = (
                drawn[score] @ weights,
                None if results else draw(names, variances, shares),
            )
            estimate = Estimate(
                float(part.mean(0) @ weights),
                float(spread.std(ddof=1)),
                len(inputs.samples),
                len(within),
            )
            results.append(
                Result(score + suffix, estimate, settings, interval(spread), picture=picture)
            )
    return results


def moments(sampler: Sampler, images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Variances of DCT coefficients of images and of their first states' means, and the noise on
    those, in units of images.
    """
    process, k, device = sampler.process, sampler.kernel.chain[0], sampler.precision.device
    data, first = DCTMoments(*images.shape[1:]), DCTMoments(*images.shape[1:])
    for rows in blocks(images):
        u0 = to_unit_range(images[rows]).to(device)
        data.add(u0.cpu())
        state, _ = process.corrupt(
            u0, torch.full((len(u0),), k, device=device), torch.zeros_like(u0)
        )
        first.add(process.to_images(state).cpu())
    unit = process.to_images(torch.ones(1)) - process.to_images(torch.zeros(1))
    return data.variance, first.variance, sampler.prior_std * unit.item()


def draw(
    names: list[str], variances: dict[str, list[np.ndarray]], shares: dict[str, list[np.ndarray]]
) -> Figure:
    """A picture by octave: variances over the data's, and the share within seeds beside what was
    predicted.
    """
    picture = Figure(figsize=(10, 4), layout="constrained")
    left, right = picture.subplots(1, 2)
    plot_octaves(left, names, variances, "variance over that of training images", 1)
    plot_octaves(right, names, shares, "share of the variance that is within seeds", 1)
    return picture
