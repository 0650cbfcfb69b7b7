"""Decode and resize a data set once, for trainings that read it as fast as memory allows.

python -m scripts.tools.pack --config C --out DIR [--config.data.path=... ...]

Afterwards `--config.data.path=DIR` is the same data set: order, split, batches, weights. The same
command continues what was interrupted.
"""

from scripts.config.flags import Values, run


def main(flags: Values) -> int:
    """Read, write, say what is there."""
    from scripts.config.resolve import validate
    from scripts.data.datasets import load_whole
    from scripts.data.packs import write_pack

    config = flags.config
    validate(config)
    sources = load_whole(config.data)
    write_pack(flags.out, config.data, sources)
    print(
        f"packed: {sum(map(len, sources.values())):,} images; --config.data.path={flags.out} reads "
        "them"
    )
    return 0


if __name__ == "__main__":
    run("pack", main)
