"""Processes of the Gaussian family: tables of alpha and sigma, and what the network predicts."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from model_code.blur import Attenuation, DCTBlur, heat_log_alpha
from model_code.gaussian import GaussianProcess

LOG_SNR_MAX, LOG_SNR_MIN = 10.0, -10.0
"""log(a_t^2 / sigma_t^2) of the cosine schedule at t = 0 and t = 1."""
SMALLEST_SCALE = 0.001
"""What blurring diffusion leaves of the highest frequencies, to be divided by."""
Size = Sequence[int]
"""Height and width of images."""


def heat_dissipation(
    blur: DCTBlur,
    sigma: float,
    *,
    protocol: str = "paper",
    delta_over_sigma: float = 1.25,
    **settings: Any,
) -> GaussianProcess:
    """Return the paper's process: alpha_k = exp(-lambda t_k), and the same noise sigma at all
    levels.

    delta_over_sigma: the paper's sampling noise; the release's is 0.01 whatever sigma is. settings:
    others of `GaussianProcess`, here and below.
    """
    sigmas = torch.full((blur.K + 1,), sigma, dtype=torch.float64)
    sigmas[0] = 0
    sigma_B, middle = blur.schedule, (blur.K + 1) // 2
    ends = f"sigma_B {sigma_B[1]:g} to {sigma_B[-1]:g} pixels"
    at_middle = f"{sigma_B[middle]:.3g} at level {middle}"
    return GaussianProcess(
        blur,
        sigmas,
        predicts="next mean",
        image_range=(0.0, 1.0),
        marginal_noise=True,
        delta=0.01 if protocol == "released" else delta_over_sigma * sigma,
        prior_of_images=True,
        discrete=False,
        level_scale=sigma_B,
        protocol=protocol,
        summary=f"{ends}, {at_middle}, sigma {sigma:g}, protocol {protocol}",
        **settings,
    )


def blurring_diffusion(
    K: int, blur_sigma_max: float, size: Size, **settings: Any
) -> GaussianProcess:
    """Hoogeboom and Salimans (ICLR 2023, arXiv 2209.05557): alpha_k = a_k d_k, images in [-1, 1].

    a_k and sigma_k are those of the cosine schedule at t = k / K, d_k what blur leaves, at least
    d_min. Without blur it is Gaussian diffusion (Ho et al., 2020). Where alpha is small, an error
    in eps reaches x multiplied by sigma / alpha, up to 150,000; one in v (Salimans and Ho, 2022) as
    it is.
    """
    t = torch.arange(K + 1, dtype=torch.float64) / K
    first, last = (math.atan(math.exp(-snr / 2)) for snr in (LOG_SNR_MAX, LOG_SNR_MIN))
    angle = first + (last - first) * t  # log SNR = -2 log tan(angle), and so a = cos(angle)
    angle[0] = 0
    blurred = heat_log_alpha(blur_sigma_max * (math.pi * t / 2).sin() ** 2, *size).exp()
    scale = (1 - SMALLEST_SCALE) * blurred + SMALLEST_SCALE
    log_alpha = angle.cos().log()[:, None, None] + scale.log()
    summary = f"sigma_B up to {blur_sigma_max:g} pixels, cosine schedule"
    return GaussianProcess(Attenuation(log_alpha), angle.sin(), summary=summary, **settings)


def flow_matching(K: int, blur_sigma_max: float, size: Size, **settings: Any) -> GaussianProcess:
    """Heat flow matching (Ma et al., 2026, arXiv 2605.19371): alpha = (1 - t) exp(-lambda (b t)^2 /
    2) and sigma = t with t = k / K, b = `blur_sigma_max`. Steps are deterministic by default.
    """
    t = torch.arange(K + 1, dtype=torch.float64) / K
    log_alpha = (1 - t).log()[:, None, None] + heat_log_alpha(blur_sigma_max * t, *size)
    summary = f"sigma_B up to {blur_sigma_max:g} pixels, flow matching"
    return GaussianProcess(Attenuation(log_alpha), t, eta=0.0, summary=summary, **settings)
