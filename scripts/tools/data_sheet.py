"""What a network will see of a data set, its spectrum, and what blur schedules make of that.

python -m scripts.tools.data_sheet --config C [--out data.png] [--schedule schedule.npy]

The picture has training images as they are read, their states at a few levels, and the spectrum:
variances of DCT coefficients of training images about their mean image. Brightness, the constant,
which no blur changes, is apart. --schedule writes the matched schedule, for
config.model.blur_schedule.
"""

import io
import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from PIL import Image

from model_code import PROCESSES
from model_code.dct import eigenvalues
from model_code.schedule import removed_variance
from model_code.spectrum import DCTMoments, bin_sums, radii_of
from scripts.config.flags import Values, run
from scripts.config.release import log_levels
from scripts.config.resolve import LOG, MATCHED, check_matched, read_levels, resolve, validate
from scripts.data.datasets import load_images, require_outside_data
from scripts.data.loader import UnreadableImages, none_readable
from scripts.data.training_set import dct_moments, matched_levels, share_moments, training_images
from scripts.errors import UserError
from scripts.evaluation.pixels import bin_means, octaves, radial_bins
from scripts.runtime.progress import warn
from scripts.storage.files import atomic_write, make_directory
from scripts.training.data_picture import DataPicture

Schedules = dict[str, torch.Tensor]
"""sigma_B, float64 (K + 1,), by name."""


def schedules_for(
    config: ConfigDict, moments: DCTMoments, needs_matched: bool = False
) -> Schedules:
    """Return the log and the matched schedule, and the configuration's own where that is another;
    none for a process that has a schedule of its own, or no blur.

    Without the matched one if there is none, unless it is needed: then that raises UserError.
    """
    model = config.model
    reads = PROCESSES[model.process].reads
    if "model.blur_schedule" not in reads or not model.blur_sigma_min < model.blur_sigma_max:
        return {}
    levels = {LOG: log_levels(model.K, model.blur_sigma_min, model.blur_sigma_max)}
    try:
        levels[MATCHED] = matched_levels(model, moments)
    except UserError:
        if needs_matched:
            raise
    configured = read_levels(config)
    if configured is not None:
        levels["configured"] = configured
    return {name: torch.tensor(sigma_B, dtype=torch.float64) for name, sigma_B in levels.items()}


def slope(power: torch.Tensor) -> float:
    """Return the exponent a of a spectrum ~ radius^a, power (H, W): least squares in log over
    `radial_bins` up to Nyquist's radius.

    Bins without power are left out.
    """
    H, W = power.shape
    bins, radii = radial_bins(H, W), radii_of(H, W).clamp(min=0.5)
    x, y = bin_means(radii.log(), bins), bin_means(power, bins).log()
    used = (x >= 0) & (x < math.log(max(H, W))) & y.isfinite()
    return float(np.polyfit(x[used], y[used], 1)[0])


def kept_variance(sigma_B: float, power: torch.Tensor) -> float:
    """Return the share of the variance, without the constant's, that a blur of so many pixels
    leaves.
    """
    varying = power.double().clone()
    varying[0, 0] = 0
    blurred = (-eigenvalues(*power.shape) * sigma_B**2).exp() * varying
    return (blurred.sum() / varying.sum()).item()


def describe(moments: DCTMoments, schedules: Schedules) -> str:
    """Tables for a person."""
    power, (H, W) = moments.variance.sum(0), moments.sum.shape[1:]
    if not power.any():
        return f"all {moments.count:,} images are alike"
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
    if not schedules:
        return "\n".join(lines)
    lines.append("\nlast blur, pixels    variance that the prior hands over, of all but brightness")
    side = "W" if W >= H else "H"
    blurs = {f"{side} / {part}": max(H, W) / part for part in (8, 4, 2)}
    for name, sigma in {**blurs, "configured": schedules[LOG][-1].item()}.items():
        lines.append(f"{sigma:>6.4g}  {name:<12}{kept_variance(sigma, power):>12.2%}")
    lines.append("\nschedule    variance removed by a step, k = 2..K: largest / smallest")
    for name, sigma_B in schedules.items():
        steps = removed_variance(sigma_B, power)[1:]
        spread = (steps.max() / steps.min()).item() if len(steps) else 1
        lines.append(f"{name:<12}{spread:>12.5g}")
    return "\n".join(lines)


def panels(moments: DCTMoments, schedules: Schedules, height: int) -> Image.Image:
    """Return the spectrum and, if there are schedules, their levels and the share of the variance
    that each step removes, one below the other in so many pixels.
    """
    power, (H, W) = moments.variance.sum(0), moments.sum.shape[1:]
    bins = radial_bins(H, W)
    figure = Figure(figsize=(4.5, max(height, 600) / 100), layout="constrained")
    spectrum, levels, steps = figure.subplots(3, 1)
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
    levels.set(title=r"$\sigma_B$ in pixels, by level $k$")
    steps.set(title="Share of the variance that step $k$ removes")
    for axes in (spectrum, levels, steps):
        axes.grid(alpha=0.3, which="both")
    if schedules:
        levels.legend()
    else:
        levels.remove()
        steps.remove()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    return Image.open(buffer)


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two pictures as one."""
    size = left.width + right.width, max(left.height, right.height)
    picture = Image.new("RGB", size, "white")
    picture.paste(left)
    picture.paste(right, (left.width, 0))
    return picture


def main(flags: Values) -> int:
    """Check, read the images once, print, write."""
    config = flags.config
    validate(config)
    new_file("--out", flags.out, ".png", config.data)
    if flags.schedule is not None:
        new_file("--schedule", flags.schedule, ".npy", config.data)
        check_matched(config.model)
    if config.model.blur_schedule != MATCHED:  # before anything is read
        resolve(config)
    images, unreadable = load_images(config.data, "train"), UnreadableImages()
    batches = training_images(images, config, unreadable, "their spectrum")
    moments = share_moments(dct_moments(batches, images.shape))
    unreadable.report(len(images), "training images")
    if moments.count < 2:
        raise none_readable(sorted(unreadable))
    is_matched = config.model.blur_schedule == MATCHED
    schedules = schedules_for(config, moments, is_matched or flags.schedule is not None)
    matched = tuple(schedules[MATCHED].tolist()) if is_matched else None
    shown = DataPicture(resolve(config, matched=matched), images)
    print(f"{images.found}\n\n{describe(moments, schedules)}")
    if line := shown.warning():
        warn(line)
    picture = shown.draw()
    if moments.variance.any():
        picture = side_by_side(picture, panels(moments, schedules, picture.height))
    with atomic_write(flags.out) as temporary:
        picture.save(temporary)
    print(f"\npicture: {flags.out}")
    if flags.schedule is not None:
        with atomic_write(flags.schedule) as temporary:
            np.save(temporary, schedules[MATCHED].numpy())
        print(f"matched schedule: --config.model.blur_schedule={flags.schedule}")
    return 0


def new_file(flag: str, path: Path, suffix: str, data: ConfigDict) -> None:
    """Raise UserError unless a file of this kind can be made, and is not there."""
    if path.suffix != suffix or path.exists():
        raise UserError(f"{flag}={path}: must be a new file, such as data{suffix}")
    require_outside_data(path, flag, data)
    make_directory(path.parent, flag)


if __name__ == "__main__":
    run("data_sheet", main)
