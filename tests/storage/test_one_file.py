"""A checkpoint's file in place of a run directory."""

import shutil
from pathlib import Path

import pytest
import torch

import evaluate
import sample
from scripts.config.flags import parse
from scripts.sampling.sampler import load_sampler
from scripts.storage.checkpoint import meta_path
from scripts.tools import publish


def test_what_is_made_with_a_file_goes_beside_it(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.evaluation.results.RUNS", tmp_path / "runs")
    file = tmp_path / "weights.pth"
    shutil.copy(meta_path(trained_run), file)
    before = file.read_bytes()
    sample.main(parse("sample", ["sample.py", f"--workdir={file}", "--batch_size=1"]))
    options = [f"--workdir={file}", "--mode=elbo", "--num_images=2", f"--out={tmp_path / 'out'}"]
    evaluate.main(parse("evaluate", ["evaluate.py", *options]))
    spectrum = [f"--workdir={file}", "--mode=spectrum", "--num_gen=4"]
    evaluate.main(parse("evaluate", ["evaluate.py", *spectrum]))
    publish.main(parse("publish", ["publish", f"--workdir={file}", f"--out={tmp_path / 'card'}"]))
    assert len(list(tmp_path.glob("weights/additional_samples/checkpoint_0/*/final.png"))) == 1
    assert (tmp_path / "weights/evaluation/results.jsonl").exists()
    assert "| BPD |" in (tmp_path / "card/README.md").read_text()
    assert file.read_bytes() == before
    samples = [
        load_sampler(place)[0].independent([0])
        for place in (trained_run, file, tmp_path / "card", tmp_path / "card/model.safetensors")
    ]
    assert all(torch.equal(samples[0], other) for other in samples)
