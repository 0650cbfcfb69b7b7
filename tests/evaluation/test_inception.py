"""Inception features, FID and KID are clean-fid's own."""

from pathlib import Path
from typing import Any

import cleanfid.features
import numpy as np
import pytest
import torch
from cleanfid import fid as cleanfid_fid
from cleanfid import inception_pytorch
from cleanfid.inception_torchscript import InceptionV3W
from PIL import Image

from scripts.evaluation.distances import Gaussian, frechet_estimate, kernel_estimate
from scripts.evaluation.features import image_features
from scripts.evaluation.inception import InceptionFeatures, weights_file
from scripts.evaluation.references import folder_images
from tests.conftest import bad_input
from tests.evaluation.inception_stand_in import write_stand_in

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that stands in for Inception's weights."""
    return write_stand_in(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two folders of forty images each: colour and grey, of several sizes."""
    rng = np.random.default_rng(0)
    made = []
    for number, contrast in enumerate((200, 256)):
        folder = tmp_path_factory.mktemp(f"images{number}")
        for i in range(40):
            shape = [(20, 20, 3), (31, 24, 3), (28, 28)][i % 3]
            Image.fromarray(rng.integers(0, contrast, shape, dtype=np.uint8)).save(
                folder / f"{i}.png"
            )
        made.append(folder)
    return made[0], made[1]


@pytest.fixture
def clean_fid(weights: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """clean-fid with the stand-in in its own code path, and the arguments that make it run here."""

    def load(path: str, download: bool, resize_inside: bool) -> InceptionV3W:
        return InceptionV3W(str(weights.parent), download=False, resize_inside=resize_inside)

    monkeypatch.setattr(cleanfid.features, "InceptionV3W", load)
    return {
        "device": CPU,
        "num_workers": 0,
        "verbose": False,
        "use_dataparallel": False,
        "batch_size": 1,
    }


@pytest.mark.parametrize("mode", ["clean", "legacy_tensorflow"])
def test_fid_and_kid_are_clean_fids(
    mode: str, weights: Path, folders: tuple[Path, Path], clean_fid: dict[str, Any]
) -> None:
    """On two folders, through clean-fid's `compute_fid` and `compute_kid`.

    Its root of a 2048 x 2048 matrix takes 15 s, so that FID is of the first 30 features.
    """
    extractor = InceptionFeatures(mode, str(weights), CPU)
    reference, generated = (
        image_features(images, range(len(images)), extractor)["features"]
        for images in map(folder_images, folders)
    )
    whole = cleanfid.features.build_feature_extractor(mode, CPU, use_dataparallel=False)
    expected = cleanfid_fid.compute_fid(
        str(folders[1]),
        str(folders[0]),
        mode=mode,
        custom_feat_extractor=lambda x: whole(x)[:, :30],
        **clean_fid,
    )
    found, _ = frechet_estimate(generated[:, :30], Gaussian.of(reference[:, :30]))
    assert found.value == pytest.approx(expected, rel=1e-4)
    expected = cleanfid_fid.compute_kid(str(folders[1]), str(folders[0]), mode=mode, **clean_fid)
    assert kernel_estimate(generated, reference, 0).value == pytest.approx(expected, rel=1e-3)


def test_legacy_pytorch_features_are_clean_fids(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole network, from PyTorch's folder of downloads, with weights that are its initial
    ones.
    """
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    file = tmp_path / "checkpoints" / inception_pytorch.FID_WEIGHTS_URL.rsplit("/", 1)[-1]
    file.parent.mkdir()
    with monkeypatch.context() as patch, torch.random.fork_rng():
        patch.setattr(inception_pytorch, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(torch.nn.Module, "load_state_dict", lambda *_: None)
        torch.save(inception_pytorch.fid_inception_v3().state_dict(), file)
    model = cleanfid.features.build_feature_extractor("legacy_pytorch", CPU, use_dataparallel=False)
    files = [str(folders[0] / name) for name in ("0.png", "3.png")]
    expected = cleanfid_fid.get_files_features(
        files, model, 0, 2, CPU, "legacy_pytorch", verbose=False
    )
    pixels = np.stack([np.asarray(Image.open(name)).transpose(2, 0, 1) for name in files])
    found = InceptionFeatures("legacy_pytorch", "", CPU)(torch.from_numpy(pixels))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_grey_images_are_repeated(weights: Path) -> None:
    extractor = InceptionFeatures("clean", str(weights), CPU)
    grey = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8)
    np.testing.assert_allclose(extractor(grey), extractor(grey.expand(-1, 3, -1, -1)), atol=1e-5)


def test_where_weights_are_looked_for(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert weights_file(str(weights)) == weights_file(str(weights.parent)) == weights
    monkeypatch.setenv("IHDM_INCEPTION_PATH", str(weights))
    assert weights_file() == weights


@pytest.mark.usefixtures("no_network")
def test_weights_that_are_not_there_or_damaged(tmp_path: Path, weights: Path) -> None:
    """One line: which file, from where, and how to say where it is. Nothing half-written."""
    with bad_input() as error:
        weights_file(str(tmp_path))
    for part in (
        str(tmp_path / weights.name),
        "https://nvlabs-fi-cdn",
        "no network in tests",
        "--inception_path",
    ):
        assert part in str(error.value)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / weights.name).write_bytes(weights.read_bytes()[:1000])
    with bad_input(f"{weights.name}: cannot be loaded for --cleanfid_mode=clean"):
        InceptionFeatures("clean", str(tmp_path), CPU)
