"""The commands as a user types them: what works, and one clear line for what cannot."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.config.flags import flags_of
from scripts.config.paths import ROOT
from scripts.storage.files import read_json_lines
from tests.conftest import error_line
from tests.forks import forked
from tests.images import save_noise
from tests.tiny import TINY


def run(
    script: str, *args: object, config: Path | str = TINY, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run an entry script from another directory, as users do."""
    options = ("--config.training.n_iters=2", "--config.model.sampling_noise=isotropic")
    return forked(script, "--config", config, *options, *args, cwd="/", **environment)


def succeed(script: str, *args: object) -> subprocess.CompletedProcess[str]:
    """As `run`, and it has to go well."""
    result = run(script, *args)
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory by train.py, with --workdir below the home directory and with a colon."""
    home = tmp_path_factory.mktemp("home")
    result = run("train.py", "--workdir=~/runs/2026-11-30T19:20", HOME=str(home))
    assert result.returncode == 0, result.stderr
    assert "finished at step 2" in result.stdout
    assert f"report in {home}/runs/2026-11-30T19:20/index.html" in result.stdout
    return home / "runs" / "2026-11-30T19:20"


def test_a_run_directory(trained: Path) -> None:
    for name in (
        "checkpoints-meta/checkpoint.pth",
        "checkpoints/checkpoint_1.pth",
        "tensorboard",
        "metrics.jsonl",
        "index.html",
        "samples/iter_2/final.png",
        "samples/iter_2/process.gif",
        "samples/iter_2/process.mp4",
    ):
        assert (trained / name).exists(), name
    assert json.loads((trained / "config.json").read_text())["model"]["blur_sigma_max"] == 4.0


def test_training_again_says_that_it_is_done_and_a_failing_report_is_a_warning(
    trained: Path,
) -> None:
    page = trained / "index.html"
    page.unlink()
    page.mkdir()
    result = run("train.py", "--workdir", trained)
    page.rmdir()
    assert result.returncode == 0
    assert "already finished at step 2" in result.stdout
    assert "warning: the page about the run: " in result.stderr


@pytest.mark.parametrize(
    ("flags", "directory", "files"),
    [
        ("", "0/delta_0.0125", "final.png init.png samples.npy process.mp4"),
        ("--same_init --delta=0.01", "0/delta_0.01_same_init", "final.npy"),
        (
            "--init=held_out --from_level=2 --per_init=3 --batch_size=7",
            "0/delta_0.0125_init_held_out_from_2",
            "initial_images.png",
        ),
        ("--checkpoint=1 --share_noise", "1/delta_0.0125_share_noise", "process.gif"),
        (
            "--interpolate --num_points=3 --number=1",
            "0/interpolate_delta_0.0125_1",
            "interpolation.png init_input.png base_sample.png process.mp4",
        ),
    ],
)
def test_four_kinds_of_samples(flags: str, directory: str, files: str, trained: Path) -> None:
    result = succeed("sample.py", "--workdir", trained, "--batch_size=2", *flags.split())
    place = trained / "additional_samples" / f"checkpoint_{directory}"
    assert str(place) in result.stdout
    assert all((place / file).stat().st_size > 0 for file in files.split())


def test_a_batch_is_a_part_of_the_samples(trained: Path) -> None:
    """--save_sample_freq, --number, --seed and --prior, through the files that they change."""
    base = trained / "additional_samples" / "checkpoint_0"
    command = ("sample.py", "--workdir", trained, "--seed=3")
    succeed(*command, "--batch_size=4", "--save_sample_freq=2")
    states = np.load(base / "delta_0.0125_seed_3" / "samples.npy")
    assert states.shape == (3, 4, 1, 8, 8)  # levels 3, 1 and 0
    succeed(*command, "--batch_size=2", "--number=1", "--prior=data")
    part = np.load(base / "delta_0.0125_seed_3_1" / "final.npy")
    np.testing.assert_allclose(part, states[-1, 2:], atol=1e-3)


def test_a_run_directory_is_enough(trained: Path, tmp_path: Path) -> None:
    """Sampling, evaluating and continuing without --config; overrides are compared; pictures
    elsewhere with --out.
    """

    def run(script: str, *args: object) -> subprocess.CompletedProcess[str]:
        return forked(script, "--workdir", trained, *args, cwd=tmp_path)

    sample = ["--batch_size=2", "--out=pictures"]
    for more in (
        [],
        [f"--config={trained / 'config.json'}"],
        ["--config.device=cpu", "--config.model.sampling_noise=isotropic"],
    ):
        assert run("sample.py", *sample, *more).returncode == 0
    assert [path.name for path in (tmp_path / "pictures" / "checkpoint_0").iterdir()] == [
        "delta_0.0125"
    ], "the same, drawn again"
    assert "config.model.K was 3, now 4" in error_line(
        run("sample.py", *sample, "--config.model.K=4")
    )
    result = run("evaluate.py", "--mode=elbo", "--num_images=2", "--out=scores")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "scores" / "BPD_log.txt").exists()
    assert "already finished at step 2" in run("train.py").stdout
    (tmp_path / "file").touch()
    for script, options in (("sample.py", sample[:1]), ("evaluate.py", ["--mode=elbo"])):
        assert "--out=file/x" in error_line(run(script, *options, "--out=file/x")), (
            "before anything is computed"
        )


def test_pictures_of_other_settings_are_never_replaced(trained: Path, tmp_path: Path) -> None:
    """Whatever differs: seed of the configuration, number, precision, prior; and the step, after
    more training.
    """
    base, kept = tmp_path / "checkpoint_0", {}
    flags = ("--batch_size=1", "--prior=data", "--precision=float16", "--config.seed=5")
    for changes in ([], *([flag] for flag in flags)):
        succeed("sample.py", "--workdir", trained, "--out", tmp_path, "--batch_size=2", *changes)
        directories = [path for path in base.iterdir() if path not in kept]
        assert len(directories) == 1
        kept[directories[0]] = (directories[0] / "final.npy").read_bytes()
    assert all((path / "final.npy").read_bytes() == pixels for path, pixels in kept.items())
    assert base / "delta_0.0125" in kept
    assert base / "delta_0.0125_step_2" in kept


def test_dead_flags_of_the_release_are_named_in_a_warning(trained: Path) -> None:
    flags = ("--batch_size=1", "--final_noise=0.1", "--eval_folder=eval")
    line = "warning: --eval_folder, --final_noise: no effect, as in the original release\n"
    assert succeed("sample.py", "--workdir", trained, *flags).stderr == line


def test_export_continues_where_it_stopped(trained: Path, tmp_path: Path) -> None:
    directory = tmp_path / "images"

    def export(*args: object) -> subprocess.CompletedProcess[str]:
        return run(
            "sample.py", "--workdir", trained, "--export_dir", directory, "--batch_size=3", *args
        )

    assert export("--num_samples=5").returncode == 0
    assert sorted(path.name for path in directory.glob("*.png")) == [
        f"{i:06d}.png" for i in range(5)
    ]
    before = np.asarray(Image.open(directory / "000002.png")).astype(int)
    (directory / "000002.png").unlink()
    untouched = (directory / "000001.png").stat().st_mtime_ns
    assert export("--num_samples=6").returncode == 0
    assert "holds 6 images" in export("--num_samples=3").stderr
    assert (directory / "000001.png").stat().st_mtime_ns == untouched
    assert (directory / "000005.png").exists()
    again = np.asarray(Image.open(directory / "000002.png"))
    assert np.abs(again - before).max() <= 1, "another batch, the same image"
    assert "it holds samples made otherwise (delta was 0.0125, now 0.02" in error_line(
        export("--num_samples=6", "--delta=0.02")
    )


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        (
            "--config.model.Kx=3",
            "config.model.Kx: there is no such key in configs/default.py; did you mean "
            "config.model.K?",
        ),
        (
            "--config.modle.K=3",
            "config.modle.K: there is no such key in configs/default.py; did you mean "
            "config.model.K?",
        ),
        ("--config.model.K=many", "--config.model.K=many"),
        ("--worksdir=x", "worksdir"),
        ("configs", "'configs' is not a flag"),
        ("--workdir=~nobody_of_this_name/x", "--workdir=~nobody_of_this_name/x: not a path"),
        (
            "--config.data.dataset=imagenet",
            "config.data.dataset = 'imagenet': must be one of mnist5k",
        ),
        ("--config.data.dataset=ffhq", "https://github.com/NVlabs/ffhq-dataset"),
    ],
)
def test_bad_input_to_training(argument: str, expected: str, tmp_path: Path) -> None:
    line = error_line(
        run("train.py", "--workdir", tmp_path / "run", "--config.data.path=/nowhere", argument)
    )
    assert expected in line
    assert list(tmp_path.iterdir()) == [], "nothing is written"


def test_configuration_files_that_fail(tmp_path: Path) -> None:
    line = error_line(run("train.py", "--workdir", tmp_path / "run", config=tmp_path / "none.py"))
    assert "none.py: there is no such file" in line
    for broken in ("def get_config():\n    return undefined_name\n", "def get_config(:\n"):
        (tmp_path / "broken.py").write_text(broken)
        assert "broken.py" in error_line(
            run("train.py", "--workdir", tmp_path / "run", config=tmp_path / "broken.py")
        )


def test_argument_of_a_configuration_file(tmp_path: Path) -> None:
    """FILE:ARGUMENT, as ml_collections has it; overrides apply afterwards."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from tests.tiny import tiny_config\n\n"
        "def get_config(K):\n    return tiny_config(model__K=int(K), training__n_iters=7)\n"
    )
    changed = "--config.training.n_iters=1234567"
    result = forked("train.py", f"--config={file}:33", "--plan", changed)
    assert result.returncode == 0, result.stderr
    assert "33 forward passes" in result.stdout
    assert "1,234,567" in result.stdout


def test_unwritable_workdir(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = error_line(run("train.py", "--workdir", tmp_path / "file" / "run"))
    assert "cannot write there" in line
    assert str(tmp_path / "file" / "run") in line


def test_own_images_with_a_truncated_one_among_them(tmp_path: Path) -> None:
    """Named, skipped and counted; training continues. A folder without images is an error."""
    folder = tmp_path / "mine"
    folder.mkdir()
    args = [
        "--config.data.dataset=folder",
        f"--config.data.path={folder}",
        "--config.data.num_channels=3",
    ]
    args += ["--config.training.n_iters=4", "--config.training.log_freq=4"]
    assert "mine" in error_line(run("train.py", "--workdir", tmp_path / "run", *args))
    save_noise(folder, 30, 12, 10, 3)
    data = (folder / "4.png").read_bytes()
    (folder / "4.png").write_bytes(data[: len(data) // 2])
    result = succeed("train.py", "--workdir", tmp_path / "run", *args)
    assert result.stdout.count("4.png") + result.stderr.count("4.png") == 1
    rows = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    assert [row["unreadable_images"] for row in rows if "loss" in row] == [1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--delta=-0.1", "--delta=-0.1"),
        ("--delta=nan", "--delta=nan"),
        ("--init=/no/where", "--init=/no/where: cannot be used"),
        (
            "--init=held_out --from_level=4",
            "--from_level=4: must be a level that is visited; near it 2 and 3",
        ),
        ("--checkpoint=7", "has no checkpoints/checkpoint_7.pth; there are 1"),
        ("--config.model.K=4", "config.model.K was 3, now 4"),
        (
            f"--init={ROOT}/docs/gallery --num_samples=1 --export_dir={ROOT}/docs/gallery/x",
            f"--export_dir={ROOT}/docs/gallery/x: pictures there would become images of --init = ",
        ),
    ],
)
def test_bad_input_to_sampling(arguments: str, expected: str, trained: Path) -> None:
    before = sorted(trained.rglob("*"))
    assert expected in error_line(run("sample.py", "--workdir", trained, *arguments.split()))
    assert sorted(trained.rglob("*")) == before, "nothing is written"


@pytest.mark.parametrize("script", ["train.py", "sample.py", "evaluate.py"])
def test_help_and_missing_flags(script: str) -> None:
    """All flags, the common ones first, after the docstring."""
    result = forked(script, "--help")
    listed = result.stdout.partition("\nFlags:\n")[2].split("\n  --")
    name = re.compile(r"(?:  --)?(?:\[no\])?(\w+)")
    names = [name.match(text)[1] for text in listed]  # type: ignore[index]
    assert result.returncode == 0
    assert names == [flag.name for flag in flags_of(script.removesuffix(".py"))]
    assert names[:2] == ["config", "workdir"]
    assert ("--config" if script == "train.py" else "--workdir") in error_line(forked(script))


def test_help_for_a_reader_who_has_seen_enough() -> None:
    line = f"{shlex.quote(sys.executable)} sample.py --help | head -1"
    shown = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert (shown.stdout, shown.stderr) == ("Draw samples from a trained model.\n", "")


@pytest.mark.parametrize(
    "streams", ["2>&-", ">&-", "<&- >&- 2>&-", "2>&1 | true", "> /dev/full 2> /dev/full"]
)
def test_lines_that_cannot_be_printed_end_nothing(streams: str, tmp_path: Path) -> None:
    """Nor do they land in files, which must not get the numbers of closed streams."""
    code = f"""
import os, sys, warnings
from scripts.config.flags import run

def main(flags):
    with open({str(tmp_path / "file")!r}, "w") as file:
        for i in range(300):
            print("x" * 1000)
            print(i, file=sys.stderr)
            warnings.warn(str(i))
            os.write(2, b"a library's line")
        file.write("whole")
    return 3

run("a command", main)
"""
    line = f"set -o pipefail; {shlex.quote(sys.executable)} -c {shlex.quote(code)} {streams}"
    assert subprocess.run(["bash", "-c", line], cwd=ROOT, timeout=60, check=False).returncode == 3
    assert (tmp_path / "file").read_text() == "whole"
