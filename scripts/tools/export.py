"""Export a reverse step of a trained model with its network, to run without this program.

python -m scripts.tools.export --workdir RUN --out step.pt2 [--steps=25] [--delta=D] [--eta=E]

A .pt2 file is read with torch.export.load, an .onnx file by ONNX runtimes; docs/library.md has a
loop around it. Batches may have any size. Only levels of the chain that settings["levels"] lists
mean something. A network that is told classes is told none.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model_code.dct import dct2, idct2
from model_code.gaussian import GaussianProcess
from model_code.kernels import GaussianKernel
from scripts.config.flags import Values, run
from scripts.errors import UserError, one_line
from scripts.runtime.progress import warn
from scripts.sampling.choice import Choice
from scripts.sampling.sampler import Sampler, load_sampler
from scripts.storage.files import atomic_write

INPUTS, OUTPUTS = ("z", "k", "eps"), ("network", "next")


class Step(nn.Module):
    """A step of the reverse process, from any level of a chain to the one that follows."""

    def __init__(self, model: nn.Module, kernel: GaussianKernel) -> None:
        super().__init__()
        self.model, self.kernel = model, kernel

    def forward(self, z: Tensor, k: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """States z and standard normal noise (B, C, H, W), int64 levels k (B,) of the chain: the
        network's output, and the states that follow, those at level 0 without noise.
        """
        F, kernel = self.model(z, k), self.kernel
        mean, std = kernel.mean(z, F, k), kernel.variance(k).sqrt().float()
        noise = idct2(std * dct2(eps, kernel.planes), kernel.planes)
        last = (kernel.next_level[k] == 0)[:, None, None, None]
        return F, torch.where(last, mean, mean + noise)


def export_step(sampler: Sampler, path: Path, settings: dict[str, Any]) -> None:
    """Write the step to a .pt2 or .onnx file; `settings` go with it as JSON.

    Raises UserError for a process without such a step, and for other names of files.
    """
    kernel, model = sampler.kernel, sampler.model
    if not isinstance(kernel, GaussianKernel) or not isinstance(model, nn.Module):
        raise UserError("only steps of the included processes are exported")
    assert isinstance(sampler.process, GaussianProcess)
    if sampler.classes:
        warn("the network is told classes, and the exported step tells it none")
    settings = settings | {
        "levels": kernel.chain,
        "image_range": sampler.process.image_range,
        "inputs": INPUTS,
        "outputs": OUTPUTS,
    }
    step = Step(model, kernel).eval()
    z = torch.zeros(2, *sampler.shape, device=sampler.precision.device)
    eps = torch.zeros_like(z)  # not z itself: inputs that are one tensor become one input
    k = torch.full((2,), kernel.chain[0], device=z.device)
    with torch.no_grad():
        step(z, k, eps)  # matrices that are kept between calls are made outside of the tracing
    batch = {0: torch.export.Dim("batch", min=1)}
    program = torch.export.export(step, (z, k, eps), dynamic_shapes=(batch, batch, batch))
    text = json.dumps(settings)
    with atomic_write(path) as temporary:
        if path.suffix == ".onnx":
            write_onnx(program, temporary, text)
        else:
            torch.export.save(program, temporary, extra_files={"settings.json": text})


def write_onnx(program: torch.export.ExportedProgram, path: Path, settings: str) -> None:
    """Raises UserError where the packages for it are not installed."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"--out: pip install onnx onnxscript ({one_line(error)})") from None
    onnx_program = torch.onnx.export(
        program, input_names=INPUTS, output_names=OUTPUTS, external_data=False, verbose=False
    )
    assert onnx_program is not None
    onnx_program.model.metadata_props["settings"] = settings
    onnx_program.save(path)


def main(flags: Values) -> int:
    """Export what the flags name."""
    if flags.out.suffix not in (".pt2", ".onnx"):
        raise UserError(f"--out={flags.out}: must end in .pt2 or .onnx")
    if not flags.out.parent.is_dir():
        raise UserError(f"--out={flags.out}: there is no such directory")
    if flags.out.exists():
        raise UserError(f"--out={flags.out}: is already there; choose another name")
    choice = Choice(flags.delta, flags.steps, flags.eta)
    sampler, trained = load_sampler(
        flags.workdir, flags.checkpoint, config=flags.config, choice=choice
    )
    export_step(sampler, flags.out, sampler.record(trained).settings())
    size = flags.out.stat().st_size / 1e6
    print(f"step {trained.step}, delta {sampler.label}: {flags.out}, {size:.1f} MB")
    return 0


if __name__ == "__main__":
    run("export", main)
