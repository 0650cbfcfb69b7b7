"""Errors of samples that share initial images: by simulation, 30 initial images with 10 samples of
each."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from scripts.estimate import Estimate
from scripts.evaluation.distances import (
    Gaussian,
    _kernel_variance,
    frechet_estimate,
    kernel_estimate,
    prdc_estimates,
)
from scripts.evaluation.pixels import (
    compare,
    nearer_than_held_out,
    octaves,
    powers,
    radial_bins,
    ratio_of_medians,
)

CPU = torch.device("cpu")
GROUPS = np.repeat(np.arange(30), 10)
Groups = np.ndarray | None
Measured = dict[str, tuple[float, float]]
BINS = [radial_bins(4, 4), octaves(4, 4)]
RADIAL = int(BINS[0].max()) + 1


def draw(rng: np.random.Generator, groups: np.ndarray, d: int, shared: float = 0.97) -> np.ndarray:
    """Standard normal features (N, d), of whose variance a group shares a part."""
    between = rng.standard_normal((groups.max() + 1, d))[groups]
    within = rng.standard_normal((len(groups), d))
    return (shared**0.5 * between + (1 - shared) ** 0.5 * within).astype(np.float32)


def pairs(found: dict[str, Estimate]) -> Measured:
    return {name: (one.value, one.standard_error) for name, one in found.items()}


def features(seed: int, groups: Groups) -> Measured:
    reference = 0.8 * draw(np.random.default_rng(1000), np.arange(200), 6) + 0.2
    x = draw(np.random.default_rng(seed), GROUPS, 6)
    fid, _ = frechet_estimate(x, Gaussian.of(reference), groups)
    found = {"FID": fid, "KID": kernel_estimate(x, reference, 0, groups)}
    return pairs(found | prdc_estimates(x, reference, 5, CPU, groups))


def pixels(deviations: np.ndarray) -> np.ndarray:
    return (128 + 25 * deviations).clip(0, 255).astype(np.uint8).reshape(-1, 1, 4, 4)


TRAINING = powers(pixels(draw(np.random.default_rng(1000), np.arange(2000), 16)), BINS, CPU)


def spectra(seed: int, groups: Groups) -> Measured:
    samples = pixels(1.2 * draw(np.random.default_rng(seed), GROUPS, 16))
    found = compare(powers(samples, BINS, CPU, groups), TRAINING, RADIAL, 0, groups)
    return {
        f"spectrum {i}": (float(value), float(error)) for i, (value, error) in enumerate(found.T)
    }


def distances(seed: int, groups: Groups) -> Measured:
    rng = np.random.default_rng(seed)
    ours, held_out = np.exp(draw(rng, GROUPS, 1)[:, 0] - 1.5), np.exp(rng.standard_normal(500))
    found = {"ratio": ratio_of_medians, "nearer": nearer_than_held_out}
    drawn = {name: measure(ours, held_out, seed, groups) for name, measure in found.items()}
    own = Estimate.of(torch.from_numpy(ours < 0.2), groups)
    return {name: (value, float(each.std())) for name, (value, each) in drawn.items()} | pairs(
        {"own": own}
    )


@pytest.mark.parametrize("measure", [features, spectra, distances])
def test_errors_are_those_of_repeated_draws(
    measure: Callable[[int, Groups], Measured], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every measure; as if all samples were independent they are a third of that, or half."""
    monkeypatch.setattr("scripts.evaluation.distances.SUBSETS", 2)
    monkeypatch.setattr("scripts.evaluation.pixels.REPLICATES", 100)
    found = [measure(seed, GROUPS) for seed in range(60)]
    alone = [measure(seed, None) for seed in range(5)]
    for name in found[0]:
        values, errors = np.transpose([one[name] for one in found])
        spread = values.std(ddof=1)
        assert 0.75 < np.sqrt(np.mean(errors**2)) / spread < 1.35, name
        naive = np.sqrt(np.mean([one[name][1] ** 2 for one in alone])) / spread
        assert naive < 0.7 or name == "Recall", name


def test_point_estimates_of_groups() -> None:
    """Pairs of one group do not bias distances and variances: copies of images change nothing that
    counts pairs."""
    rng, groups = np.random.default_rng(0), np.arange(40).repeat(3)
    x, reference, images = (
        draw(rng, np.arange(40), 6),
        draw(rng, np.arange(90), 6),
        pixels(draw(rng, np.arange(40), 16)),
    )
    variances = (
        _kernel_variance(x.repeat(3, 0), reference, groups),
        _kernel_variance(x, reference, np.arange(40)),
    )
    assert variances[0] == pytest.approx(variances[1], rel=1e-4)
    rows = powers(images.repeat(3, 0), BINS, CPU, groups), powers(images, BINS, CPU)
    np.testing.assert_allclose(rows[0].mean(0), rows[1].mean(0), rtol=1e-5)
    drawn = [(draw(rng, GROUPS, 6), draw(rng, np.arange(300), 6)) for _ in range(40)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scripts.evaluation.distances.SUBSETS", 2)
        for groups_known, biased in ((GROUPS, False), (None, True)):
            found = [kernel_estimate(*pair, 0, groups_known).value for pair in drawn]
            assert (np.mean(found) > 3 * np.std(found) / len(found) ** 0.5) == biased, (
                "they have one distribution"
            )


def test_one_initial_image_has_no_error() -> None:
    """A value, and a line that says why there is nothing after it."""
    x, alone = draw(np.random.default_rng(0), np.arange(40), 6), np.zeros(40, int)
    reference = draw(np.random.default_rng(1), np.arange(40), 6)
    fid, _ = frechet_estimate(x, Gaussian.of(reference), alone)
    found = [
        fid,
        kernel_estimate(x, reference, 0, alone),
        *prdc_estimates(x, reference, 5, CPU, alone).values(),
    ]
    for one in found:
        assert not np.isfinite(one.standard_error)
        assert str(one).endswith(" (no error: one initial image)")
    images = powers(pixels(draw(np.random.default_rng(0), np.arange(40), 16)), BINS, CPU, alone)
    assert np.isfinite(compare(images, TRAINING, RADIAL, 0, alone)[0]).all()
    assert np.isnan(compare(images, TRAINING, RADIAL, 0, alone)[1]).all()
    for measure in (ratio_of_medians, nearer_than_held_out):
        value, drawn = measure(abs(x[:, 0]), abs(reference[:, 0]), 0, alone)
        assert np.isfinite(value)
        assert np.isnan(drawn).all()
