"""Progress for people: bars with time to go on a terminal, now and then a line in a log file. Of
process 0 only.
"""

import functools
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from tqdm import tqdm

from scripts.errors import one_line
from scripts.runtime import distributed

SECONDS_BETWEEN_LINES = 30


def warn(text: str) -> None:
    """A warning, as a line on stderr that does not break a bar."""
    if not distributed.is_main():
        return
    if sys.stderr.isatty():
        tqdm.write(f"warning: {text}", file=sys.stderr)
    else:  # tqdm would write its bars anew with every line
        print(f"warning: {text}", file=sys.stderr, flush=True)


@functools.cache
def warn_once(text: str) -> None:
    """A warning, the first time that it is given."""
    warn(text)


_failed: set[str] = set()


@contextmanager
def optional(what: str) -> Iterator[None]:
    """Make errors of the body a warning, the first one of each kind: nothing depends on its
    outputs.
    """
    try:
        yield
    except Exception as error:
        if what not in _failed:
            _failed.add(what)
            warn(f"{what}: {one_line(error) or type(error).__name__}; going on without")


class _Lines(tqdm):
    """A bar for log files: now and then a whole line, nothing to be overwritten."""

    disable: bool

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        self.fp.write(f"{self}\n")

    def clear(self, nolock: bool = False) -> None:
        pass

    def close(self) -> None:
        if not self.disable:
            self.disable = True
            self._decr_instances(self)


def progress_bar(total: int, unit: str, description: str, initial: int = 0) -> tqdm:
    """A tqdm bar that leaves nothing behind; where there is no terminal, it shows only work of over
    half a minute.
    """
    options: dict[str, Any] = {
        "leave": False,
        "dynamic_ncols": True,
        "disable": not distributed.is_main(),
    }
    kind = tqdm
    if not sys.stderr.isatty():
        kind, options = (
            _Lines,
            options | {"delay": SECONDS_BETWEEN_LINES, "mininterval": SECONDS_BETWEEN_LINES},
        )
    return kind(total=total, unit=unit, desc=description, initial=initial, **options)


class TrainingProgress(AbstractContextManager["TrainingProgress"]):
    """A bar on a terminal; elsewhere a line for each row of metrics."""

    def __init__(self, first_step: int, n_iters: int) -> None:
        self.on_terminal = sys.stderr.isatty()
        hidden = not (self.on_terminal and distributed.is_main())
        self.bar = tqdm(
            total=n_iters, initial=first_step, unit="step", dynamic_ncols=True, disable=hidden
        )
        self.first_step, self.n_iters = first_step, n_iters
        self.started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def step_done(self, loss: float) -> None:
        """Advance by one step."""
        self.bar.set_postfix(loss=f"{loss:.3g}", refresh=False)
        self.bar.update()

    def report(self, step: int, loss: float) -> None:
        """Step, loss, speed and time to go, which on a terminal the bar shows."""
        if not self.on_terminal:
            rate = (step - self.first_step) / (time.monotonic() - self.started)
            left = duration((self.n_iters - step) / rate)
            print(
                f"step {step}/{self.n_iters}  loss {loss:.4g}  {rate:.2f} it/s  {left} to go",
                flush=True,
            )

    def say(self, text: str) -> None:
        """A message on stdout that does not break the bar."""
        if self.on_terminal:
            tqdm.write(text, file=sys.stdout)
        else:
            print(text, flush=True)


def duration(seconds: float) -> str:
    """Seconds as "42 s", "5 min 10 s", "3 h 20 min" or "4 d 3 h"."""
    minutes, whole_seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (whole_seconds, "s")]
    first = next((i for i, (value, _) in enumerate(parts) if value), len(parts) - 1)
    return " ".join(f"{value} {unit}" for value, unit in parts[first : first + 2] if value) or "0 s"
