"""Scores of samples: exactly those asked for, as uint8, kept and continued, against every kind of
reference.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cleanfid
import cleanfid.features
import cleanfid.fid
import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

from scripts.estimate import Estimate
from scripts.evaluation.classifier import classifier_features
from scripts.evaluation.distances import Gaussian, Reference, frechet_estimate
from scripts.evaluation.inception import InceptionFeatures
from scripts.evaluation.metrics import MODES, Inputs
from scripts.evaluation.references import save_statistics
from scripts.evaluation.results import Point, Result
from scripts.sampling.choice import Choice
from scripts.sampling.sampler import Sampler, load_sampler
from tests.conftest import bad_input
from tests.evaluation.evaluations import Recorder, of_samples
from tests.images import save_images, save_noise
from tests.tiny import tiny_config

CPU = torch.device("cpu")
Evaluate = Callable[..., dict[str, Result]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty images."""
    return save_noise(tmp_path_factory.mktemp("folder"), 20, 12, 12, 3)


@pytest.fixture(autouse=True)
def offline(no_network: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and clean-fid's statistics in a folder of their own."""
    monkeypatch.setattr(cleanfid, "__file__", str(tmp_path / "cleanfid" / "__init__.py"))


@pytest.fixture
def evaluate(run: Path, folder: Path) -> Evaluate:
    """`SampleEvaluation` on that run; whatever is not given is the cheapest there is."""

    def call(config: ConfigDict | None = None, **changes: Any) -> dict[str, Result]:
        options: dict[str, Any] = {
            "mode": "kid", "reference": str(folder),
            "make_extractor": lambda: InceptionFeatures("clean", str(run), CPU),
        } | changes  # fmt: skip
        point = Point(options.pop("delta", None), seed=options.pop("seed", None))
        return {result.score: result for result in of_samples(run, config, **options)(point)}

    return call


def test_exactly_the_first_samples_rounded(evaluate: Evaluate, run: Path) -> None:
    """What the extractor sees last are samples 0..num_gen-1 to the nearest of 0..255."""
    recorder = Recorder()
    result = evaluate(
        num_gen=11, batch_size=4, reference="", dataset_split="held_out", seed=5, delta=0.03,
        make_extractor=lambda: recorder,
    )["KID"]  # fmt: skip
    assert result.estimate.num_images == 11
    expected = {"seed": 5, "delta": "0.03", "checkpoint_step": 7, "reference_images": 500}
    assert expected.items() <= result.settings.items()
    assert [len(batch) for batch in recorder.batches[-4:]] == [4, 4, 4, 3], (
        "500 reference images end with a batch of 4"
    )
    drawn = torch.cat(recorder.batches[-3:])
    sampler, _ = load_sampler(run, config=tiny_config(), seed=5, choice=Choice(0.03), scoring=True)
    exact = sampler.independent(range(11)).clamp(0, 1) * 255
    assert (drawn.dtype, drawn.shape) == (torch.uint8, (11, 1, 8, 8))
    assert (drawn.float() - exact).abs().max() <= 0.5 + 1e-2, "rounded, not cut off"


def test_another_metric_and_more_samples_reuse_features(
    evaluate: Evaluate, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    original = Sampler.independent

    def counting(self: Sampler, indices: Sequence[int]) -> torch.Tensor:
        drawn.extend(indices)
        return original(self, indices)

    monkeypatch.setattr(Sampler, "independent", counting)
    first = evaluate(seed=11)["KID"]
    assert drawn == list(range(11))
    assert set(evaluate(seed=11, mode="prdc")) == {"Precision", "Recall", "Density", "Coverage"}
    assert drawn == list(range(11))
    assert evaluate(seed=11, num_gen=15)["KID"].estimate.num_images == 15
    assert drawn == list(range(15))
    assert evaluate(seed=11)["KID"].estimate.value == first.estimate.value
    drawn.clear()
    evaluate(seed=11, delta=0.05)
    evaluate(seed=11, make_extractor=partial(InceptionFeatures, "legacy_tensorflow", str(run), CPU))
    evaluate(seed=11, precision="bfloat16")
    evaluate(tiny_config(model__protocol="released"), seed=11)
    assert drawn == [*range(11)] * 4
    assert evaluate(tiny_config(model__dropout=0.5), seed=11)["KID"].estimate == first.estimate
    assert drawn == [*range(11)] * 4, "samples do not depend on dropout"


def test_scores_come_with_those_of_held_out_images(
    evaluate: Evaluate, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classifier = partial(classifier_features, run, tiny_config().data, CPU, steps=40)
    results = evaluate(
        make_extractor=classifier, reference="", mode="all", num_gen=200, batch_size=100
    )
    assert list(results) == ["FID", "KID", "Precision", "Recall", "Density", "Coverage"]
    printed = capsys.readouterr().out
    assert "% of held-out images right" in printed
    assert "FID: 200 held-out images have " in printed
    for result in results.values():
        settings, estimate = result.settings, result.estimate
        assert np.isfinite(estimate.standard_error)
        assert estimate.num_images == settings["held_out_images"] == 200
        assert settings["reference_images"] == 4500
        assert settings["value_at_held_out_images"] == pytest.approx(estimate.value, rel=1e-6)
    for score in ("FID", "KID"):
        assert results[score].estimate.value > 3 * results[score].settings["held_out"], (
            "golden weights are not a good model"
        )
    assert results["Precision"].settings["held_out"] > 0.5
    assert results["Precision"].settings["k"] == 5
    assert results["FID"].per_image is not None
    proportions = [score for score, result in results.items() if result.interval]
    assert proportions == ["Precision", "Recall", "Coverage"]


def test_fid_near_that_of_the_reference_itself_says_that_its_error_is_rough() -> None:
    """Which it does not where the error can be relied upon."""
    rng = np.random.default_rng(0)
    x, reference = (rng.standard_normal((count, 6)).astype(np.float32) for count in (200, 4000))
    for scale, expected in ((1.0, "its standard error is rough here, of first order"), (2.0, "")):
        inputs = Inputs(scale * x, Reference("draws", reference), seed=0, k=5, device=CPU)
        (result,) = MODES["fid"][0].compute(inputs)
        assert result.note.startswith(expected)
        assert bool(result.note) == bool(expected)


@pytest.mark.filterwarnings("ignore:FID of 11 samples")
def test_custom_statistics_are_clean_fids(
    evaluate: Evaluate, run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made here, found by clean-fid and by us in any letter case; the same scores as from the
    folder itself.
    """
    extractor = InceptionFeatures("clean", str(run), CPU)
    path = save_statistics("My_Images", folder, extractor, "clean", 8)
    assert path.name == "my_images_clean_custom_na.npz"
    assert sorted(file.name for file in path.parent.iterdir()) == [
        path.name,
        "my_images_clean_custom_na_kid.npz",
    ]
    mu, sigma = cleanfid.features.get_reference_statistics("My_Images", "na", split="custom")
    feats = cleanfid.features.get_reference_statistics(
        "my_IMAGES", "na", split="custom", metric="KID"
    )
    np.testing.assert_allclose(mu, feats.mean(0), rtol=1e-4, atol=1e-6)
    assert sigma.shape == (2048, 2048)
    assert feats.shape == (20, 2048)

    use_short_estimate(monkeypatch)
    from_folder = evaluate(mode="all")
    named = {"reference": "MY_images", "dataset_split": "custom"}
    for changes in (named, {"reference": str(path.with_name("my_images_clean_custom_na_kid.npz"))}):
        found = evaluate(mode="all", **changes)
        for score in ("FID", "KID"):
            assert found[score].estimate.value == pytest.approx(
                from_folder[score].estimate.value, rel=1e-4
            )
    only_moments = evaluate(mode="fid", reference=str(path))["FID"]
    assert only_moments.estimate.value == pytest.approx(from_folder["FID"].estimate.value, rel=1e-4)
    assert only_moments.settings["reference_images"] is None

    for name, expected in (
        ("my_images", "there are statistics of that name"),
        ("../x", "must be a plain name"),
    ):
        with bad_input(f"--custom_name={name}: {expected}"):
            save_statistics(name, folder, extractor, "clean", 8)
    with bad_input(r"must hold feats .*; it has {'mu': \(2048,\), 'sigma'"):
        evaluate(reference=str(path))
    path.rename(path.with_name("my_images_clean_custom_8.npz"))  # made for a resolution
    assert evaluate(mode="fid", **named)["FID"].estimate.value == only_moments.estimate.value


def use_short_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Frechet distance of the first features only: roots of large matrices take seconds."""

    def short_estimate(
        generated: np.ndarray, reference: Gaussian, groups: Any
    ) -> tuple[Estimate, np.ndarray]:
        return frechet_estimate(
            generated[:, :8], Gaussian(reference.mu[:8], reference.sigma[:8, :8]), groups
        )

    monkeypatch.setattr("scripts.evaluation.metrics.frechet_estimate", short_estimate)
    monkeypatch.setattr("scripts.evaluation.metrics.frechet_of_reference", lambda *_: 0.0)


def test_published_statistics_by_name(
    evaluate: Evaluate, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under clean-fid's own file name, with the resolution of the configuration."""
    use_short_estimate(monkeypatch)
    stats = tmp_path / "cleanfid" / "stats"
    stats.mkdir(parents=True)
    np.savez(stats / "digits_legacy_tensorflow_test_8.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    options: dict[str, Any] = {
        "reference": "Digits", "dataset_split": "test",
        "make_extractor": partial(InceptionFeatures, "legacy_tensorflow", str(run), CPU),
    }  # fmt: skip
    with pytest.warns(
        UserWarning, match="FID of 11 samples in 2048 dimensions is far too high; raise --num_gen"
    ):
        found = evaluate(mode="fid", **options)
    assert found["FID"].settings["reference"] == "Digits test, clean-fid's statistics"
    with bad_input() as error:
        evaluate(mode="kid", **options)
    for part in (
        "--dataset_name_cleanfid=Digits --dataset_split=test",
        "8 pixels",
        "no network in tests",
    ):
        assert part in str(error.value)


STATISTICS: dict[str, dict[str, Any]] = {
    "other": {"feats": np.zeros((9, 5))},
    "odd": {"mu": np.zeros(2048), "sigma": np.zeros((4, 4))},
    "nan": {"mu": np.full(3, np.nan), "sigma": np.eye(3)},
    "negative": {"mu": np.zeros(3), "sigma": -np.eye(3)},
    "asymmetric": {"mu": np.zeros(3), "sigma": np.eye(3) + np.triu(np.ones((3, 3)))},
    "indefinite": {"mu": np.zeros(3), "sigma": np.eye(3) - np.ones((3, 3))},
}
"""Files that cannot be, by name."""
NO_COVARIANCE = ".npz: sigma is no covariance, as it is not symmetric and positive semi-definite"
ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "one sample": ({"num_gen": 1}, "--num_gen=1: kid needs at least 2 samples"),
    "five samples": ({"num_gen": 5, "mode": "prdc"}, "--num_gen=5: prdc needs at least 6 samples"),
    "split": (
        {"reference": "", "dataset_split": "dev"},
        "--dataset_split=dev: the configuration's own data set has train",
    ),
    "folder": ({"reference": "/nowhere/images"}, "/nowhere/images: no such folder"),
    "empty folder": ({"reference": "./cifar10"}, "no image files in it"),
    "few images": ({"reference": "./four", "mode": "prdc"}, "4 images, where prdc needs at least"),
    "folder and name": ({"reference": "cifar10"}, "./cifar10 for the folder, or cleanfid:cifar10"),
    "file": ({"reference": "/nowhere/stats.npz"}, "/stats.npz: cannot be read as an .npz"),
    "name": (
        {"reference": "imagenot"},
        "--dataset_name_cleanfid=imagenot --dataset_split=train: clean-fid's",
    ),
    "custom name": ({"reference": "mine", "dataset_split": "custom"}, "make it with --save_stats"),
    "other features": (
        {"reference": "other.npz"},
        "must hold feats (M, 2048) or, for --mode=fid alone, mu (2048,) and sigma (2048, 2048); "
        "it has {'feats': (9, 5)}",
    ),
    "sigma of another size": ({"reference": "odd.npz"}, "it has {'mu': (2048,), 'sigma': (4, 4)}"),
    "no number": ({"reference": "nan.npz"}, "nan.npz: mu must be finite"),
    "negative": ({"reference": "negative.npz"}, NO_COVARIANCE),
    "asymmetric": ({"reference": "asymmetric.npz"}, NO_COVARIANCE),
    "indefinite": ({"reference": "indefinite.npz"}, NO_COVARIANCE),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_one_line_for_what_is_wrong(
    case: str, evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar10").mkdir()
    save_images(tmp_path / "four", [f"{i}.png" for i in range(4)])
    for name, arrays in STATISTICS.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    changes, expected = ERRORS[case]
    with bad_input() as error:
        evaluate(**changes)
    assert expected in str(error.value)
