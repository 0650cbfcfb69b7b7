"""A step that was exported is that of the sampler, for batches of any size."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from scripts.config.flags import parse
from scripts.config.paths import ROOT
from scripts.sampling.reverse import IndependentNoise
from scripts.sampling.sampler import load_sampler
from scripts.tools.export import main
from tests.conftest import bad_input


def arguments(run: Path, out: Path, *more: str) -> list[str]:
    return ["export", f"--workdir={run}", f"--out={out}", *more]


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_samples_of_the_file_are_those_of_the_sampler(
    suffix: str, trained_run: Path, tmp_path: Path
) -> None:
    program: Callable[..., Sequence[torch.Tensor]]
    path = tmp_path / f"step{suffix}"
    main(parse("export", arguments(trained_run, path)))
    if suffix == ".pt2":
        files = {"settings.json": ""}
        program = torch.export.load(path, extra_files=files).module()
        settings = json.loads(files["settings.json"])
    else:
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(path)
        settings = json.loads(session.get_modelmeta().custom_metadata_map["settings"])

        def run(*tensors: torch.Tensor) -> Sequence[torch.Tensor]:
            arrays = (tensor.numpy() for tensor in tensors)
            inputs = dict(zip(settings["inputs"], arrays, strict=True))
            return [torch.from_numpy(array) for array in session.run(None, inputs)]

        program = run

    sampler, trained = load_sampler(trained_run)
    assert settings["weights_crc32"] == trained.weights_crc32
    indices = range(5)
    noise = IndependentNoise(sampler.seed, indices, sampler.shape, torch.device("cpu"))
    z = sampler.prior.means(torch.tensor(sampler.origins(indices)))
    z = z + settings["prior_std"] * noise(sampler.process.K + 1)
    with torch.no_grad():
        for k in settings["levels"][:-1]:
            _, z = program(z, torch.full((5,), k), noise(k))
    torch.testing.assert_close(z, sampler.independent(indices), rtol=0, atol=1e-5)


def test_a_step_that_tells_no_classes_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its output is the network's without a class."""
    run = ROOT / "runs/mnist/conditional"
    main(parse("export", arguments(run, tmp_path / "step.pt2", "--steps=2")))
    assert "the exported step tells it none" in capsys.readouterr().err
    sampler, _ = load_sampler(run)
    z, k = torch.rand(1, *sampler.shape), torch.tensor([sampler.process.K])
    with torch.no_grad():
        F, _ = torch.export.load(tmp_path / "step.pt2").module()(z, k, torch.zeros_like(z))
        torch.testing.assert_close(F, sampler.model(z, k), rtol=0, atol=1e-5)


def test_bad_input(trained_run: Path, tmp_path: Path) -> None:
    there = tmp_path / "there.pt2"
    there.write_text("something else")
    for path, message in (
        (tmp_path / "step.txt", r"--out=.*step.txt: must end in .pt2 or .onnx"),
        (there, r"--out=.*there.pt2: is already there"),
    ):
        with bad_input(message):
            main(parse("export", arguments(trained_run, path)))
    assert there.read_text() == "something else"
