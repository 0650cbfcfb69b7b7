"""Draw samples from a trained model.

python sample.py --workdir W [--batch_size=9] [--same_init | --share_noise | --interpolate]
python sample.py --workdir W --class=cat --guidance=2
python sample.py --workdir W --init=photo.png --from_level=60
python sample.py --workdir W --super_resolve=small.png
python sample.py --workdir W --inpaint=photo.png --mask=mask.png
python sample.py --workdir W --edit=photo.png --blur=2,8

The configuration is the run's own; the release's checkpoints have none, and need --config.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scripts.config.flags import Values, run

if TYPE_CHECKING:
    from pathlib import Path

    from scripts.sampling.sampler import Sampler
    from scripts.storage.checkpoint import TrainedModel


def main(flags: Values) -> int:
    """Join the other processes, if there are any, and draw."""
    from scripts.runtime import distributed  # imports PyTorch, which --help need not wait for

    with distributed.processes():
        return draw(flags)


def draw(flags: Values) -> int:
    """Load the model and draw: single images in all processes, pictures in the first."""
    from scripts.data.datasets import require_outside_data
    from scripts.data.values import meaning_of_8_bits
    from scripts.runtime import distributed
    from scripts.runtime.device import choose_threads
    from scripts.sampling.choice import Choice, parse_number
    from scripts.sampling.export import export
    from scripts.sampling.from_pictures import make_from_pictures
    from scripts.sampling.sampler import load_sampler
    from scripts.storage.checkpoint import run_directory
    from scripts.storage.files import make_directory

    choose_threads()
    sampler, trained = load_sampler(
        flags.workdir,
        flags.checkpoint,
        config=flags.config,
        choice=Choice(
            flags.delta,
            flags.steps,
            flags.eta,
            flags.sampler,
            flags.init,
            flags.per_init,
            flags.from_level,
            getattr(flags, "class"),
            None if flags.guidance is None else parse_number("guidance", flags.guidance),
            flags.guidance_interval,
        ),
        seed=flags.seed,
        precision=flags.precision or ("auto" if flags.export_dir is None else "float32"),
        from_data=flags.prior == "data",
    )
    config, export_dir = trained.experiment.config, flags.export_dir
    out = flags.out or run_directory(flags.workdir) / "additional_samples"
    base = out / f"checkpoint_{flags.checkpoint}"
    init = None if flags.init in ("held_out", "train") else flags.init
    flag = "--out" if export_dir is None else "--export_dir"
    pictures = {name: getattr(flags, name) for name in ("super_resolve", "inpaint", "edit")}
    require_outside_data(export_dir or base, flag, config.data, init=init, **pictures)
    if export_dir is not None:
        settings = sampler.record(trained).settings()
        batch_size = flags.batch_size or config.eval.batch_size
        export(
            export_dir, sampler, settings, flags.num_samples, batch_size, npz=flags.export == "npz"
        )
        print(f"{flags.num_samples} samples in {export_dir}{meaning_of_8_bits(config.data)}")
        return 0
    if not distributed.is_main():
        return 0
    make_directory(base, "--out")
    if any(pictures.values()):
        settings = sampler.record(trained).settings()
        made = make_from_pictures(flags, sampler, base, settings, config.data)
        print(f"step {trained.step}: {made}")
    else:
        picture = draw_pictures(flags, sampler, trained, base)
        print(f"step {trained.step}, delta {sampler.label}, seed {sampler.seed}: {picture}")
    return 0


def draw_pictures(flags: Values, sampler: Sampler, trained: TrainedModel, base: Path) -> Path:
    """Draw one batch of samples or a path between two, below `base`; return the picture of all.

    Raises UserError for more classes than a path has ends.
    """
    from scripts.errors import UserError
    from scripts.sampling import output

    chosen = sampler.asked or getattr(sampler.initial_images, "asked", ())
    if flags.interpolate and len(chosen) > 2:
        right = "must be one or two classes with --interpolate, those of the ends"
        raise UserError(f"--class={getattr(flags, 'class')}: {right}")
    # Another seed or batch has a name of its own; for whatever else differs see `own_directory`.
    suffix = "" if sampler.seed == trained.experiment.config.seed else f"_seed_{sampler.seed}"
    suffix += "" if flags.number is None else f"_{flags.number}"
    number = flags.number or 0
    whole = flags.interpolate or flags.share_noise
    sampler, batch_size = output.fill_rows(
        sampler, flags.batch_size or 9, 1 if whole else flags.per_init
    )
    batch_size *= max(1, len(sampler.asked))
    settings = sampler.record(trained).settings() | {"prior": flags.prior}
    if flags.interpolate:
        ends = 2 * number, 2 * number + 1
        settings |= {"kind": "interpolation", "ends": list(ends), "num_points": flags.num_points}
        directory = output.own_directory(
            base / f"interpolate_delta_{sampler.label}{suffix}", settings
        )
        output.interpolation_set(directory, sampler, ends, flags.num_points)
        return directory / "interpolation.png"
    kind: output.Kind = "independent"
    if flags.same_init:
        kind = "same_init"
    elif flags.share_noise:
        kind = "share_noise"
    shared = "" if kind == "independent" else f"_{kind}"
    indices = range(number * batch_size, (number + 1) * batch_size)
    settings |= {
        "kind": kind,
        "samples": [indices.start, indices.stop],
        "save_sample_freq": flags.save_sample_freq,
    }
    directory = output.own_directory(base / f"delta_{sampler.label}{shared}{suffix}", settings)
    every = flags.save_sample_freq
    output.sample_set(directory, sampler, indices, kind=kind, every=every, keep_states=True)
    return directory / "final.png"


if __name__ == "__main__":
    run("sample", main)
