"""Samples given part of an image, y = H u_0: low frequencies, means of blocks, or pixels.

At every step back the estimate of the image is corrected where y says otherwise, not the state
(DDNM, Wang et al., 2023): mean += r H^+ (y - H x_hat). What r and x_hat are says `gaussian.py`.
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from model_code.dct import dct2, idct2
from model_code.gaussian import GaussianProcess
from model_code.kernels import GaussianKernel
from model_code.process import ReverseKernel

ALTERNATIONS = 50
"""Of clamping to [0, 1] and agreeing with y, at the end."""


class Observation(Protocol):
    """What is known of images (B, C, H, W) in [0, 1]."""

    y: Tensor
    """(1, ...), the same for all samples, or (B, ...)."""

    def measure(self, u: Tensor) -> Tensor:
        """H u, of the shape of y."""

    def lift(self, y: Tensor) -> Tensor:
        """H^+ y, with H H^+ = 1: (B, C, H, W)."""


class BlockMeans:
    """A picture smaller by a whole factor, each pixel the mean of a block."""

    def __init__(self, y: Tensor, factor: int) -> None:
        """y: (B, C, H / factor, W / factor)."""
        self.y, self.factor = y, factor

    def measure(self, u: Tensor) -> Tensor:
        """Means of blocks of factor x factor pixels."""
        return avg_pool2d(u, self.factor)

    def lift(self, y: Tensor) -> Tensor:
        """Each pixel repeated."""
        return interpolate(y, scale_factor=self.factor, mode="nearest")


class KnownPixels:
    """Pixels outside a mask."""

    def __init__(self, y: Tensor, known: Tensor) -> None:
        """y: images (B, C, H, W), of which those pixels count where `known` (H, W) is true."""
        self.known = known
        self.y = self.measure(y)

    def measure(self, u: Tensor) -> Tensor:
        """Return the known pixels, 0 elsewhere."""
        return u * self.known

    def lift(self, y: Tensor) -> Tensor:
        """Return those again."""
        return y * self.known


class LowFrequencies:
    """Coefficients of the lowest frequencies, with noise of standard deviation `sigma` or none."""

    def __init__(self, y: Tensor, known: Tensor, sigma: float = 0.0) -> None:
        """y: coefficients (B, C, H, W), of which those count where `known` (H, W) is true."""
        self.known, self.sigma = known, sigma
        self.y = y * known

    def measure(self, u: Tensor) -> Tensor:
        """Return the known coefficients, 0 elsewhere."""
        return dct2(u) * self.known

    def lift(self, y: Tensor) -> Tensor:
        """Return the image of these coefficients."""
        return idct2(y * self.known)


class ObservedKernel(ReverseKernel):
    """A kernel whose means agree with an observation."""

    def __init__(self, kernel: GaussianKernel, observation: Observation) -> None:
        """Raises ValueError if the kernel does not estimate images."""
        if not kernel.estimates_images:
            raise ValueError(
                "an observation needs the calibrated kernel of a network that predicts the next "
                "mean: --delta=calibrated, after python -m scripts.tools.calibrate"
            )
        self.kernel, self.observation = kernel, observation
        self.process: GaussianProcess = kernel.process
        self.label, self.chain, self.prior_std = kernel.label, kernel.chain, kernel.prior_std

    def mean(self, u_k: Tensor, F: Tensor, k: Tensor) -> Tensor:
        """That of the kernel, plus r times the correction of the estimate."""
        mean, estimate = self.kernel.mean(u_k, F, k), self.kernel.estimate(u_k, F, k)
        missing = self.observation.y - self.observation.measure(self.process.to_images(estimate))
        low, high = self.process.image_range
        correction = dct2((high - low) * self.observation.lift(missing))
        r = self.kernel.coefficients(k)[1] * self._gain(k)
        return mean + idct2(r.to(correction) * correction)

    def noise(self, eps: Tensor, k: int) -> Tensor:
        """That of the kernel, less what the observation tells of the error of the estimate."""
        levels = torch.tensor([k], device=eps.device)
        gain = self._gain(levels)
        if not isinstance(self.observation, LowFrequencies):
            return self.kernel.noise(eps, k)
        s = self.kernel.coefficients(levels)[2]
        gain = gain * self.observation.known
        variance = s**2 + (1 - gain) * (self.kernel.variance(levels) - s**2)
        return idct2(variance.sqrt().to(eps) * dct2(eps))

    def _gain(self, k: Tensor) -> Tensor:
        """Return how much of a difference counts, E / (E + sigma^2) for a noisy observation."""
        sigma = getattr(self.observation, "sigma", 0.0)
        one = torch.ones((), dtype=torch.float64, device=k.device)
        if sigma == 0:
            return one
        low, high = self.process.image_range
        error = self.kernel.estimate_error(k)
        return error / (error + ((high - low) * sigma) ** 2)


def agree(observation: Observation, u: Tensor) -> Tensor:
    """Images (B, C, H, W) in [0, 1] that agree with the observation, near u, by alternation."""
    for _ in range(ALTERNATIONS):
        u = u.clamp(0, 1)
        u = u + observation.lift(observation.y - observation.measure(u))
    return u.clamp(0, 1)
