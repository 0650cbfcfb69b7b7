"""Networks that are told classes: training, guidance, samples of classes, and their scores."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sample
from model_code import build_model
from model_code.guidance import conditioned
from scripts.config.flags import parse
from scripts.config.resolve import resolve
from scripts.data.datasets import load_images
from scripts.evaluation.command import evaluate
from scripts.evaluation.distances import Reference
from scripts.evaluation.metrics import MODES, Inputs
from scripts.evaluation.scores import scores_of_classes
from scripts.runtime import distributed
from scripts.runtime.device import Precision
from scripts.sampling.bound import Measurement
from scripts.sampling.choice import Choice
from scripts.sampling.initial_images import InitialImages
from scripts.sampling.output import sample_set
from scripts.sampling.sampler import Sampler, load_sampler, make_sampler
from scripts.storage.checkpoint import meta_path, read
from scripts.training.loop import read_initial_weights, train
from scripts.training.step import Trainer
from tests.conftest import bad_input
from tests.golden import fill_golden
from tests.images import random_images
from tests.tiny import tiny_config
from tests.training.runs import array_config

CPU = torch.device("cpu")
FLOAT32 = Precision.named(CPU, "float32")
CLASSES = {"cat": 6, "dog": 12, "eel": 12}
LABELS = torch.arange(30) % 5 // 2  # 0 0 1 1 2: of 12, 12 and 6
PIXELS = random_images(30, 1, 8, 8)
Z = random_images(4, 1, 8, 8, seed=1)
K = torch.tensor([1, 2, 3, 3])
# With 32 channels GroupNorm's groups are single channels, and remove what embeddings add.
WIDE = {"model__channel_mult": (2,)}
CONDITIONAL = {"model__class_conditional": True, "data__num_classes": 3, **WIDE}


def filled(model: Any) -> Any:
    """With weights, of which those of classes matter."""
    fill_golden(model)
    model.label_emb.weight.data = torch.tensor([[-0.3], [0.1], [0.4]]).expand(3, 128).clone()
    return model


def sampler_of(process: str = "heat", **choice: object) -> Sampler:
    """Of a network that is told three classes."""
    experiment = resolve(tiny_config(**CONDITIONAL, model__process=process))
    model = filled(build_model(experiment.config)).eval()
    prior = experiment.process.build_prior([PIXELS])
    if process == "heat":
        prior = replace(prior, labels=LABELS)  # type: ignore[type-var]
        choice = {"delta": 0.05} | choice
    return make_sampler(
        experiment, model, prior, FLOAT32, None,
        choice=Choice(**choice), seed=1, classes=CLASSES,  # type: ignore[arg-type]
    )  # fmt: skip


# --- the network ---


def test_a_class_is_an_embedding_that_begins_at_zero() -> None:
    model: Any = build_model(tiny_config(**CONDITIONAL)).eval()
    names = [name for name, _ in model.named_parameters()]
    assert names[3:6] == ["time_embed.2.bias", "label_emb.weight", "input_blocks.0.0.weight"]
    assert model.label_emb.weight.abs().max() == 0
    filled(model)
    y = torch.tensor([0, 1, 2, -1])
    told, weights = model(Z, K, y), torch.eye(3)[y] * (y >= 0)[:, None]
    torch.testing.assert_close(told, model(Z, K, weights))
    assert ((told - model(Z, K)).abs().amax((1, 2, 3)) > 1e-4).tolist() == [True, True, True, False]


def test_guidance_by_its_formula_and_at_its_levels() -> None:
    calls: list[torch.Tensor] = []

    def network(z: torch.Tensor, k: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        calls.append(y)
        return z + k[:, None, None, None] * (y[:, None, None, None] + 1.0)

    y = torch.tensor([0, 1, 2, 2])
    without, told = Z, network(Z, K, y)
    guided = conditioned(network, y, 3.0, (2, 3))(Z, K)
    torch.testing.assert_close(guided[0], told[0])
    torch.testing.assert_close(guided[1:], (without + 3 * (told - without))[1:])
    for guidance, interval in ((1.0, (1, 3)), (3.0, (4, 9))):
        calls.clear()
        conditioned(network, y, guidance, interval)(Z, K)
        assert len(calls) == 1  # no call without classes


# --- training ---


def test_labels_are_dropped_by_seed_step_and_position(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(resolve(tiny_config(**CONDITIONAL, training__label_dropout=0.3)), CPU)
    labels = torch.arange(400) % 3
    whole = trainer._told(labels)
    assert 0.2 < (whole == -1).double().mean() < 0.4
    assert torch.equal(whole[whole >= 0], labels[whole >= 0])
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(trainer._told(labels[rank * 200 :][:200]))
    assert torch.equal(torch.cat(parts), whole)
    trainer.step = 1
    assert not torch.equal(trainer._told(labels[200:]), parts[1])


def test_a_network_is_told_the_classes_of_its_images() -> None:
    """Only classes that came up have a gradient, and the loss depends on them."""
    losses = []
    for label in (0, 1):
        trainer = Trainer(resolve(tiny_config(**CONDITIONAL, training__label_dropout=0.0)), CPU)
        model = filled(trainer.model)
        before = model.label_emb.weight.detach().clone()
        losses.append(trainer.train_step(Z, torch.full((4,), label)).losses)
        changed = (model.label_emb.weight != before).any(1)
        assert changed.tolist() == [label == 0, label == 1, False]
    assert not torch.equal(*losses)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conditional run of 3 classes in an .npz, that began with unconditional weights."""
    place = tmp_path_factory.mktemp("classes")
    images = (PIXELS[:, 0].numpy() * 255).astype(np.uint8)
    names = np.array(["cat", "dog", "eel"])[LABELS]
    np.savez(place / "images.npz", arr_0=images, kind=names)
    config = array_config(place / "images.npz", model__K=4, **WIDE)
    assert train(config, place / "plain") == 0
    config.data.labels, config.model.class_conditional = "kind", True
    config.training.init_from = str(place / "plain")
    assert train(config, place / "run") == 0
    return place / "run"


def test_a_checkpoint_keeps_names_counts_and_labels(run: Path) -> None:
    contents = read(meta_path(run))
    assert contents["classes"] == {"cat": 11, "dog": 11, "eel": 5}
    sampler, trained = load_sampler(run)
    assert sampler.prior.labels is not None
    counts = sampler.prior.labels.bincount().tolist()
    assert counts == [22, 22, 10]  # with mirror images
    assert list(trained.classes) == ["cat", "dog", "eel"]
    from_data, _ = load_sampler(run, from_data=True)
    assert from_data.prior.labels is not None
    assert torch.equal(from_data.prior.labels, sampler.prior.labels)


def test_it_starts_from_unconditional_weights(run: Path) -> None:
    config = load_sampler(run)[1].experiment.config
    initial = read_initial_weights(resolve(config))
    assert initial.weights["label_emb.weight"].abs().max() == 0
    plain = read(meta_path(run.parent / "plain"))["ema"]["shadow"]
    assert all(torch.equal(initial.weights[name], plain[name]) for name in plain)


def test_continuing_with_other_labels_is_refused(run: Path) -> None:
    config = load_sampler(run)[1].experiment.config.copy_and_resolve_references()
    arrays = dict(np.load(config.data.path))
    for kinds, line in (
        (np.array(["dog", "cat", "eel"])[LABELS], r"trained on other images .*, other labels"),
        (np.arange(30) % 2, r"data\.num_classes = 3: must be 2, or 0 to be filled in"),
    ):
        path = run.parent / "other.npz"
        np.savez(path, arr_0=arrays["arr_0"], kind=kinds)
        config.data.path = str(path)
        with bad_input(line):
            train(config, run)
    config.data.labels = ""
    with bad_input(r"class_conditional = True: .* has no labels: set"):
        train(config, run)


# --- samples ---


@pytest.mark.parametrize(
    ("process", "choice"),
    [
        ("heat", {"guidance": 2.0}),
        ("heat", {"guidance": 2.0, "guidance_interval": "2,3"}),
        ("flow_matching", {"guidance": 2.0, "eta": 0.0}),
        ("flow_matching", {"guidance": 2.0, "eta": 0.0, "sampler": "heun"}),
    ],
)
def test_sample_i_is_a_function_of_seed_i_and_class(
    process: str, choice: dict[str, object]
) -> None:
    """Whatever batch it is in, and whatever the others are."""
    every = sampler_of(process, classes="all", **choice)
    together = every.independent(range(7))
    alone = torch.cat([every.independent([i]) for i in range(7)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-3)
    dogs = sampler_of(process, classes="dog", **choice).independent(range(7))
    torch.testing.assert_close(together[1::3], dogs[1::3], atol=1e-4, rtol=1e-3)
    assert (together - dogs)[[0, 2, 3, 5, 6]].abs().amax((1, 2, 3)).min() > 1e-3
    plain = sampler_of(
        process, classes="all", **(choice | {"guidance": None, "guidance_interval": None})
    )
    assert (plain.independent(range(7)) - together).abs().max() > 1e-3


def test_classes_of_samples() -> None:
    """Those asked for, of initial states as of the network; or as in the data."""
    sampler = sampler_of()
    labels = sampler.labels(range(2000))
    assert labels is not None
    assert torch.equal(labels, LABELS[sampler.origins(range(2000))])
    asked = sampler_of(classes="eel,0")
    assert asked.labels(range(5)).tolist() == [2, 0, 2, 0, 2]  # type: ignore[union-attr]
    assert LABELS[asked.origins(range(40))].tolist() == [2, 0] * 20
    drawn = sampler_of("flow_matching").labels(range(2000))
    shares = torch.tensor([0.2, 0.4, 0.4])
    assert drawn is not None
    torch.testing.assert_close(drawn.bincount() / 2000, shares, atol=0.03, rtol=0)
    picture = sampler.starting_from(InitialImages(PIXELS.__getitem__, 1, 4))
    assert picture.labels([0]) is None  # nothing is known of it
    picture = asked.starting_from(InitialImages(PIXELS.__getitem__, 1, 4))
    assert picture.labels([0, 1]).tolist() == [2, 0]  # type: ignore[union-attr]


def test_kinds_of_samples_with_classes(tmp_path: Path) -> None:
    sampler = sampler_of(classes="cat,eel")
    path = sampler.interpolate((0, 1), 5)
    torch.testing.assert_close(path[[0, 4]], sampler.independent([0, 1]), atol=1e-4, rtol=1e-3)
    same = sampler.same_init([0, 1])
    cats = sampler_of(classes="cat").same_init([0, 1])
    torch.testing.assert_close(same[0], cats[0], atol=1e-4, rtol=1e-3)
    assert (same[1] - cats[1]).abs().max() > 1e-3  # from the same state, of another class
    sample_set(tmp_path, sampler, range(6))
    assert (tmp_path / "classes.png").stat().st_size > 0


def test_without_guidance_there_are_no_classes() -> None:
    """A guidance of 0 is the network that is told none."""
    sampler = sampler_of(guidance=0.0)
    torch.testing.assert_close(
        sampler.independent(range(3)), replace(sampler, classes={}).independent(range(3))
    )


def test_records_and_labels_tell_classes_and_guidance_apart(run: Path) -> None:
    choices = [
        Choice(),
        Choice(classes="cat"),
        Choice(classes="all"),
        Choice(guidance=2.0),
        Choice(guidance=2.0, guidance_interval="2,3"),
        Choice(init="train"),
        Choice(init="train", classes="dog"),
    ]
    samplers = [load_sampler(run, choice=choice) for choice in choices]
    assert len({sampler.record(trained).key for sampler, trained in samplers}) == len(choices)
    assert len({sampler.label for sampler, _ in samplers}) == len(choices)
    dogs = samplers[-1][0]
    assert dogs.labels(range(30)).tolist() == [1] * 30  # type: ignore[union-attr]


def test_an_unconditional_network_starts_from_images_of_a_class(run: Path) -> None:
    plain = run.parent / "plain"
    config = load_sampler(plain)[1].experiment.config.copy_and_resolve_references()
    with bad_input(r"--class=dog: the train images of 'npy' have no labels"):
        load_sampler(plain, config=config, choice=Choice(init="train", classes="dog"))
    for choice, line in (
        (Choice(classes="dog"), "--class=dog: the network is not told classes .*--init=train or"),
        (Choice(guidance=2.0), "--guidance=2.0: the network is not told classes"),
        (Choice(guidance=2.0, init="train"), "--guidance=2.0: the network is not told classes"),
        (Choice(init="picture.png", classes="dog"), "--init=picture.png"),
    ):
        with bad_input(line):
            load_sampler(plain, choice=choice)
    digits, _ = load_sampler(Path("runs/mnist/pretrained"), choice=Choice(
        init="held_out", classes="3,5", per_init=2
    ))  # fmt: skip
    assert digits.labels(range(8)).tolist() == [3, 3, 5, 5] * 2  # type: ignore[union-attr]
    assert not digits.tells_classes


@pytest.mark.parametrize(
    ("choice", "line"),
    [
        ({"classes": "fox"}, "--class=fox: there is no class 'fox'; there are cat, dog, eel"),
        ({"classes": "3"}, "--class=3: there is no class '3'; there are cat, dog, eel"),
        ({"guidance_interval": "3,2"}, "--guidance_interval=3,2: must be lo,hi: two levels from 1"),
        ({"guidance_interval": "1,9"}, "--guidance_interval=1,9: must be lo,hi: two levels from 1"),
        ({"guidance_interval": "a"}, "--guidance_interval=a: must be lo,hi"),
        (
            {"guidance_interval": "2,2", "steps": "3,1,0"},
            "--guidance_interval=2,2: must hold a level that is visited; near it 1 and 3",
        ),
    ],
)
def test_classes_and_levels_that_do_not_exist(choice: dict[str, object], line: str) -> None:
    with bad_input(f"^{line}"):
        sampler_of("flow_matching", **choice)


@pytest.mark.parametrize("words", ["--init={}", "--inpaint={} --mask={}", "--edit={} --blur=1"])
def test_guidance_away_from_no_class_is_refused(words: str, run: Path, tmp_path: Path) -> None:
    """Nothing would be guided, and records would say that it was; with a class it is."""
    picture = tmp_path / "picture.png"
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray(pixels).save(picture)
    options = [
        f"--workdir={run}",
        f"--out={tmp_path / 'out'}",
        *words.format(picture, picture).split(),
    ]
    line = "--guidance=2: must be 1 where samples start from images whose class is not known"
    with bad_input(line):
        sample.draw(parse("sample", ["sample.py", *options, "--guidance=2"]))
    assert sample.draw(parse("sample", ["sample.py", *options, "--guidance=2", "--class=dog"])) == 0
    if "init" in words:
        options += ["--mode=spectrum", "--num_gen=4", "--guidance=1,2"]
        with bad_input(line):
            evaluate(parse("evaluate", ["evaluate.py", *options]))


def test_levels_below_the_first_may_be_none_that_are_guided() -> None:
    sampler = sampler_of(guidance=2.0, guidance_interval="3,3", classes="cat")
    with bad_input("--guidance_interval=3,3: must hold a level that is visited; near it 1 and 2"):
        sampler.from_images(PIXELS[:1], level=2)


@pytest.mark.parametrize("more", ["", "--init=train"])
def test_a_path_has_two_ends(more: str, run: Path, tmp_path: Path) -> None:
    options = [f"--workdir={run}", f"--out={tmp_path}", "--class=0,1,2", "--interpolate"]
    with bad_input("--class=0,1,2: must be one or two classes with --interpolate"):
        sample.draw(parse("sample", ["sample.py", *options, *more.split()]))


# --- scores ---


def test_the_share_of_the_asked_class_and_scores_of_each() -> None:
    features = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    classes = np.arange(40) % 2
    features[:, 0] = classes * 9
    labels = classes.copy()
    labels[:8] = 1 - labels[:8]
    reference = Reference("", features, labels=classes)

    def predict(features: np.ndarray) -> np.ndarray:
        return (features[:, 0] > 4).astype(int)

    inputs = Inputs(features, reference, 0, 3, CPU, labels=labels, predict=predict)
    (metric,) = MODES["classes"]
    (result,) = metric.compute(inputs)
    assert result.estimate.value == pytest.approx(0.8)
    assert result.estimate.standard_error == pytest.approx(math.sqrt(0.8 * 0.2 / 39))
    right = scores_of_classes(MODES["fid"], replace(inputs, labels=classes), ["a", "b"])
    wrong = scores_of_classes(MODES["fid"], replace(inputs, labels=1 - classes), ["a", "b"])
    assert [row["value"] < 1e-3 for row in right["FID"].values()] == [True, True]
    assert [row["value"] > 80 for row in wrong["FID"].values()] == [True, True]
    assert right["FID"]["a"]["num_images"] == 20


def test_the_bound_given_the_class_has_the_prior_of_its_images() -> None:
    sampler = sampler_of()
    process = sampler.process
    summary = process.prior_summary(PIXELS, sampler.prior)  # type: ignore[attr-defined]
    zero = torch.zeros(30, 1, 64, dtype=torch.float64)
    given = Measurement(torch.full((30, 1), 2), zero, zero[:, 0], summary, 1, labels=LABELS)
    bound = given.bound(process, sampler.prior, sampler.kernel)
    for label in range(3):
        rows = label == LABELS
        others = process.build_prior([PIXELS[rows]])
        alone = replace(given, labels=None, summary=summary[rows])
        expected = alone._prior_term(process, others, sampler.kernel)
        torch.testing.assert_close(bound["prior"][rows], expected.double())


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--mode=classes", "--feature_extractor=inception: needs classifier or robust_classifier"),
        (
            "--mode=prdc --per_class --num_gen=20 --feature_extractor=classifier",
            "--per_class: . samples and 5 reference images of eel, where at least 6 are needed",
        ),
        ("--mode=fid --guidance=-1", "--guidance=-1: must be a number of at least 0"),
    ],
)
def test_evaluations_that_cannot_be(words: str, line: str, run: Path, tmp_path: Path) -> None:
    options = [f"--workdir={run}", f"--out={tmp_path}", *words.split()]
    with bad_input(line):
        evaluate(parse("evaluate", ["evaluate.py", *options]))


def test_images_of_other_classes_are_refused(run: Path) -> None:
    config = load_sampler(run)[1].experiment.config.copy_and_resolve_references()
    arrays = dict(np.load(config.data.path))
    np.savez(run.parent / "renamed.npz", arr_0=arrays["arr_0"], kind=np.char.upper(arrays["kind"]))
    config.data.path = str(run.parent / "renamed.npz")
    assert load_images(config.data, "train").classes == ("CAT", "DOG", "EEL")
    with bad_input("has the classes CAT, DOG, EEL, where the network is told"):
        load_sampler(run, config=config, choice=Choice(init="train"))
