"""The spectrum of a data set, and what blur schedules make of it.

python -m scripts.tools.data_spectrum --config C [--out schedule.npy]

--out writes the matched schedule, for config.model.blur_schedule, and a picture beside it,
schedule.png. Spectra are variances of DCT coefficients of training images about their mean image;
brightness, the constant, which no blur changes, is apart.
"""

import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from model_code.dct import eigenvalues
from model_code.schedule import removed_variance
from model_code.spectrum import DCTMoments, bin_sums, radii_of
from scripts.config.flags import Values, run
from scripts.config.release import log_levels
from scripts.config.resolve import LOG, MATCHED, check_matched, read_levels, validate
from scripts.data.datasets import load_images, require_outside_data
from scripts.data.loader import UnreadableImages, none_readable
from scripts.data.training_set import dct_moments, matched_levels, share_moments, training_images
from scripts.errors import UserError
from scripts.evaluation.pixels import bin_means, octaves, radial_bins
from scripts.storage.files import atomic_write, make_directory

Schedules = dict[str, torch.Tensor]
"""sigma_B, float64 (K + 1,), by name."""


def schedules_for(config: ConfigDict, moments: DCTMoments) -> Schedules:
    """The log and the matched schedule, and the configuration's own where that is another."""
    model = config.model
    levels = {
        LOG: log_levels(model.K, model.blur_sigma_min, model.blur_sigma_max),
        MATCHED: matched_levels(model, moments),
    }
    configured = read_levels(config)
    if configured is not None:
        levels["configured"] = configured
    return {name: torch.tensor(sigma_B, dtype=torch.float64) for name, sigma_B in levels.items()}


def slope(power: torch.Tensor) -> float:
    """The exponent a of a spectrum ~ radius^a, power (H, W): least squares in log over
    `radial_bins` up to Nyquist's radius.

    Bins without power are left out.
    """
    H, W = power.shape
    bins, radii = radial_bins(H, W), radii_of(H, W).clamp(min=0.5)
    x, y = bin_means(radii.log(), bins), bin_means(power, bins).log()
    used = (x >= 0) & (x < math.log(max(H, W))) & y.isfinite()
    return float(np.polyfit(x[used], y[used], 1)[0])


def kept_variance(sigma_B: float, power: torch.Tensor) -> float:
    """The share of the variance, without the constant's, that a blur of so many pixels leaves."""
    varying = power.double().clone()
    varying[0, 0] = 0
    blurred = (-eigenvalues(*power.shape) * sigma_B**2).exp() * varying
    return (blurred.sum() / varying.sum()).item()


def describe(moments: DCTMoments, schedules: Schedules) -> str:
    """Tables for a person."""
    power, (H, W) = moments.variance.sum(0), moments.sum.shape[1:]
    deviation = (power.sum() / moments.sum.numel()).sqrt()
    lines = [
        f"spectrum of {moments.count:,} images: power ~ radius^{slope(power):.2f}, radially "
        f"averaged; standard deviation {deviation:.4g} a pixel, about the mean image",
        "",
        "wavelength, pixels   share of the variance",
    ]
    shares = (bin_sums(power, octaves(H, W)) / power.sum()).tolist()
    for i, share in enumerate(shares[:-1]):
        lines.append(f"{2 ** (i + 1):>6} to {2 ** (i + 2):<10}{share:>12.2%}")
    lines.append(f"brightness{'':<10}{shares[-1]:>12.2%}")
    lines.append("\nlast blur, pixels    variance that the prior hands over, of all but brightness")
    side = "W" if W >= H else "H"
    blurs = {f"{side} / {part}": max(H, W) / part for part in (8, 4, 2)}
    for name, sigma in {**blurs, "configured": schedules[MATCHED][-1].item()}.items():
        lines.append(f"{sigma:>6.4g}  {name:<12}{kept_variance(sigma, power):>12.2%}")
    lines.append("\nschedule    variance removed by a step, k = 2..K: largest / smallest")
    for name, sigma_B in schedules.items():
        steps = removed_variance(sigma_B, power)[1:]
        spread = (steps.max() / steps.min()).item() if len(steps) else 1
        lines.append(f"{name:<12}{spread:>12.5g}")
    return "\n".join(lines)


def draw(path: Path, moments: DCTMoments, schedules: Schedules) -> None:
    """Write a picture: the spectrum, the levels, and the share of the variance that each step
    removes.
    """
    power, (H, W) = moments.variance.sum(0), moments.sum.shape[1:]
    bins = radial_bins(H, W)
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    spectrum, levels, steps = figure.subplots(1, 3)
    radii, means = bin_means(radii_of(H, W), bins)[1:], bin_means(power, bins)[1:]
    spectrum.loglog(2 * max(H, W) / radii, means, ".-", lw=1)
    spectrum.set_xscale("log", base=2)
    spectrum.invert_xaxis()
    spectrum.set(title=f"Variance, slope {slope(power):.2f}", xlabel="wavelength in pixels")
    for name, sigma_B in schedules.items():
        k = np.arange(1, len(sigma_B))
        removed = removed_variance(sigma_B, power)[1:] / (power.sum() - power[0, 0])
        levels.semilogy(k, sigma_B[1:], label=name)
        steps.semilogy(k[1:], removed, label=name)
    levels.set(title=r"$\sigma_B$ in pixels", xlabel="level $k$")
    steps.set(title="Share of the variance that each step removes", xlabel="level $k$")
    for axes in (spectrum, levels, steps):
        axes.grid(alpha=0.3, which="both")
    levels.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)


def main(flags: Values) -> int:
    """Check, read the images once, print, write."""
    config, out = flags.config, flags.out
    validate(config)
    check_matched(config.model)
    if out is not None:
        if out.suffix != ".npy" or out.exists() or out.with_suffix(".png").exists():
            raise UserError(
                f"--out={out}: must be a new file, such as schedule.npy; a picture goes beside it, "
                "schedule.png"
            )
        require_outside_data(out, "--out", config.data)
        make_directory(out.parent, "--out")
    images, unreadable = load_images(config.data, "train"), UnreadableImages()
    batches = training_images(images, config, unreadable, "their spectrum")
    moments = share_moments(dct_moments(batches, images.shape))
    unreadable.report(len(images), "training images")
    if moments.count < 2:
        raise none_readable(sorted(unreadable))
    schedules = schedules_for(config, moments)
    print(describe(moments, schedules))
    if out is not None:
        draw(out.with_suffix(".png"), moments, schedules)
        with atomic_write(out) as temporary:
            np.save(temporary, schedules[MATCHED].numpy())
        print(f"\nmatched schedule: --config.model.blur_schedule={out}")
        print(f"picture: {out.with_suffix('.png')}")
    return 0


if __name__ == "__main__":
    run("data_spectrum", main)
