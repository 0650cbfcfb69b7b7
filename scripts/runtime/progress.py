"""Progress: bars with the time that is left on a terminal, a line at times in a log file. Of
process 0 only.
"""

import functools
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any, TextIO

from tqdm import tqdm

from scripts.errors import one_line
from scripts.runtime import distributed

SECONDS_BETWEEN_LINES = 30
SECONDS_BETWEEN_STEPS = 60
"""At most, of lines about a training."""
SLOWER = 3
SLOW_READING = 0.2
"""A share of the time from which waiting for images is worth a word."""


def say(text: str, file: TextIO | None = None) -> None:
    """Print a line on stdout, or on another file, without breaking a bar."""
    if sys.stderr.isatty():
        tqdm.write(text, file=file or sys.stdout)
    else:  # tqdm would write its bars anew with every line
        print(text, file=file, flush=True)


def warn(text: str) -> None:
    """Print a warning, as a line on stderr."""
    if distributed.is_main():
        say(f"warning: {text}", sys.stderr)


@functools.cache
def warn_once(text: str) -> None:
    """Print a warning, the first time that it is given."""
    warn(text)


@contextmanager
def optional(what: str) -> Iterator[None]:
    """Make errors of the body a warning, given once: nothing depends on its outputs."""
    try:
        yield
    except Exception as error:
        warn_once(f"{what}: {one_line(error) or type(error).__name__}; continuing without it")


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
    """Return a tqdm bar that leaves nothing behind; where there is no terminal, it shows only work
    of over half a minute.
    """
    options: dict[str, Any] = {"leave": False, "dynamic_ncols": True}
    kind = tqdm
    if not sys.stderr.isatty():
        kind = _Lines
        options |= {"delay": SECONDS_BETWEEN_LINES, "mininterval": SECONDS_BETWEEN_LINES}
    hidden = not distributed.is_main()
    return kind(
        total=total, unit=unit, desc=description, initial=initial, disable=hidden, **options
    )


class TrainingProgress(AbstractContextManager["TrainingProgress"]):
    """A bar on a terminal; elsewhere lines: after the first step, for each row of metrics, and at
    least one a minute.
    """

    def __init__(self, first_step: int, n_iters: int) -> None:
        self.on_terminal = sys.stderr.isatty()
        hidden = not (self.on_terminal and distributed.is_main())
        self.bar = tqdm(
            total=n_iters, initial=first_step, unit="step", dynamic_ncols=True, disable=hidden
        )
        self.first_step, self.n_iters = first_step, n_iters
        self.started, self.waited = time.monotonic(), 0.0
        self.next_line = self.started
        self.shown_step = first_step
        self.best_speed = 0.0

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def step_done(self, step: int, loss: float, waited: float) -> None:
        """Advance to a step, which waited so many seconds for its images."""
        self.waited += waited
        self.bar.set_postfix(loss=f"{loss:.3g}", refresh=False)
        self.bar.update()
        if time.monotonic() >= self.next_line:
            self.report(step, loss)

    def note_speed(self, images_per_second: float) -> None:
        """Give advice, once, where steps have become much slower."""
        self.best_speed = max(self.best_speed, images_per_second)
        if images_per_second < self.best_speed / SLOWER:
            warn_once(
                f"steps take more than {SLOWER} times as long as before; if other programs use the "
                "processor, the same command with OMP_NUM_THREADS=1 may be faster (results then "
                "differ in the last bits)"
            )

    def report(self, step: int, loss: float) -> None:
        """Step, loss, speed and time to go, which on a terminal the bar shows."""
        elapsed = time.monotonic() - self.started
        self.next_line = self.started + elapsed + SECONDS_BETWEEN_STEPS
        share = self.waited / elapsed
        if not self.on_terminal and step != self.shown_step:
            rate = (step - self.first_step) / elapsed
            left = duration((self.n_iters - step) / rate)
            waiting = f"  {share:.0%} waiting for images" if share > SLOW_READING else ""
            line = f"step {step}/{self.n_iters}  loss {loss:.4g}  {rate:.2f} it/s  {left} to go"
            print(line + waiting, flush=True)
        self.shown_step = step
        if share > SLOW_READING and elapsed > SECONDS_BETWEEN_STEPS:
            warn_once(
                f"more than {SLOW_READING:.0%} of the time is spent waiting for images; "
                "python -m scripts.tools.pack --config C --out DIR makes a copy that is read faster"
            )


def duration(seconds: float) -> str:
    """Seconds as "0:05:10" or "2 days, 3:20:00"."""
    return str(timedelta(seconds=round(seconds)))
