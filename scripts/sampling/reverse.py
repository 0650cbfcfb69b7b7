"""Sampling (paper, Algorithm 2): one reverse loop; the kinds of samples differ in the noise and the
initial state.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch

from model_code.dct import mix
from model_code.gaussian import GaussianProcess
from model_code.kernels import GaussianKernel
from model_code.process import Denoiser, Process, ReverseKernel, at_level
from scripts.runtime.randomness import Purpose, torch_generator

Draw = Callable[[int], torch.Tensor]
"""draw(k): the standard normal noise of the step from level k, (B, C, H, W), or (1, C, H, W) for
all images alike.
"""

OnStep = Callable[[int, torch.Tensor], None]
"""on_step(k, u_k), called as the states come, from the second level of the chain to 0."""

BLOCK = 16
"""Levels of noise that a sample draws at a time."""


def reverse_process(
    process: Process,
    model: Denoiser,
    u_K: torch.Tensor,
    kernel: ReverseKernel,
    draw: Draw,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """Run the reverse process from u_K (B, C, H, W) to level 0; the result is the last mean.

    `kernel` is what `process.reverse_kernel` returned. `draw(k)` is called for every level k of its
    chain but 0, and used after the mean of step k; that of the last step is not used. Only the
    current state is held: `on_step` may store others. Gradients are computed
    unless the caller turns them off.
    """
    u = u_K
    for k, j in pairwise(kernel.chain):
        levels = at_level(k, u)
        mean = kernel.mean(u, model(u, levels), levels[:1])
        noise = kernel.noise(draw(k).to(u.device, non_blocking=True), k)
        u = mean + noise if j > 0 else mean
        if on_step is not None:
            on_step(j, u)
    return u


def heun(
    process: GaussianProcess,
    model: Denoiser,
    u_K: torch.Tensor,
    kernel: ReverseKernel,
    draw: Draw,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """Deterministic steps of second order, for networks that predict x, eps or v.

    Each step is taken with the mean of what the network says at its start and at its end (Karras et
    al., 2022, Algorithm 1); the last has a start only. Other arguments as of `reverse_process`.
    """
    z = u_K
    for k, j in pairwise(kernel.chain):
        levels = at_level(k, z)
        change = process.change(model(z, levels), z, k, k, j)
        if j > 0:
            end, levels = z + change, torch.full_like(levels, j)
            change = (change + process.change(model(end, levels), end, j, k, j)) / 2
        z = z + change
        if on_step is not None:
            on_step(j, z)
    return z


def multistep(
    process: GaussianProcess,
    model: Denoiser,
    u_K: torch.Tensor,
    kernel: GaussianKernel,
    draw: Draw,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """Steps of second order with one network call each, for networks that predict x or v.

    DPM-Solver++(2M) and, with fresh noise, its form for stochastic equations (Lu et al., 2022), in
    each coefficient: x is extrapolated to the middle of the step, in log(alpha / sigma), from the
    last two estimates, at most by their difference, as an extrapolation far beyond a short step
    multiplies noise and errors. The first step and the last have one estimate, and so has a step
    after one from alpha = 0, flow matching's second. Arguments as of `reverse_process`.
    """
    log_ratio = process.blur.log_alpha - process.sigma.log()[:, None, None]
    z = u_K
    before: tuple[int, torch.Tensor] | None = None
    for k, j in pairwise(kernel.chain):
        levels = at_level(k, z)
        x = estimate = kernel.estimate(z, model(z, levels), levels[:1])
        if before is not None and j > 0:
            i, x_i = before
            weight = (log_ratio[j] - log_ratio[k]) / (log_ratio[k] - log_ratio[i]) / 2
            weight = weight.nan_to_num(0.0).clamp(max=1)
            estimate = mix(1 + weight, x, -weight, x_i)
        before = k, x
        p, r, _ = kernel.coefficients(levels[:1])
        z = mix(p, z, r, estimate)
        if j > 0:
            z = z + kernel.noise(draw(k).to(z.device, non_blocking=True), k)
        if on_step is not None:
            on_step(j, z)
    return z


SAMPLERS = {"reverse": reverse_process, "multistep": multistep, "heun": heun}
"""By the value of --sampler: one network call a step; with heun two, but for the last."""


class IndependentNoise:
    """Each sample has its own stream, a function of (seed, index): what else is in the batch does
    not matter.
    """

    def __init__(
        self, seed: int, indices: Sequence[int], shape: tuple[int, ...], device: torch.device
    ) -> None:
        """indices of the samples; shape (C, H, W) of an image."""
        self.seed, self.indices, self.shape, self.device = seed, indices, shape, device
        self._block = -1

    def __call__(self, k: int) -> torch.Tensor:
        block, place = divmod(k, BLOCK)
        if block != self._block:
            generators = (
                torch_generator(self.device, self.seed, Purpose.SAMPLE_NOISE, block, i)
                for i in self.indices
            )
            shape = (BLOCK, *self.shape)
            self._drawn = torch.stack(
                [torch.randn(shape, generator=g, device=self.device) for g in generators], dim=1
            )
            self._block = block
        return self._drawn[place]


class SphericalNoise:
    """From the noise of one index to that of another along a great circle, cos(w) e1 + sin(w) e2
    with w in [0, pi/2].

    Every point on the way is standard normal, which the straight line between e1 and e2 is not.
    """

    def __init__(
        self,
        seed: int,
        indices: tuple[int, int],
        shape: tuple[int, ...],
        num_points: int,
        device: torch.device,
    ) -> None:
        self.ends = IndependentNoise(seed, indices, shape, device)
        # The cosines are the sines backwards: 0 and 1 at the ends exactly, which cos(pi / 2) is not
        # in float32.
        sines = torch.linspace(0, torch.pi / 2, num_points, dtype=torch.float64).sin().float()
        self.sines = sines[:, None, None, None].to(device)

    def __call__(self, k: int) -> torch.Tensor:
        e1, e2 = self.ends(k)
        return self.sines.flip(0) * e1 + self.sines * e2


def linear_path(ends: torch.Tensor, num_points: int) -> torch.Tensor:
    """`num_points` (at least 2) images on the straight line between ends (2, C, H, W): (num_points,
    C, H, W).
    """
    w = torch.linspace(0, 1, num_points)[:, None, None, None]
    return (1 - w) * ends[0] + w * ends[1]
