"""SIGTERM, SIGHUP and Ctrl-C end a run in good order: it saves, says how to go on, and exits."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from scripts.runtime import distributed


class Interrupted(Exception):
    """Raised between two pieces of work once a signal has come."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number  # the shells' convention: the run is not finished


class InterruptionGuard:
    """Within the context these signals are noted instead of obeyed; a second Ctrl-C is obeyed at
    once.

    SIGHUP stays ignored where it is, as by nohup.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> "InterruptionGuard":
        numbers = {signal.SIGTERM, signal.SIGINT}
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.add(signal.SIGHUP)
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def check(self) -> None:
        """Raise Interrupted if this process got a signal: for work without collectives, within
        `until_interrupted`.
        """
        if self.received is not None:
            raise Interrupted(self.received)

    def check_all(self) -> None:
        """Raise Interrupted in all processes if any of them got a signal. A collective function."""
        received = max(distributed.gather(self.received or 0))
        if received:
            raise Interrupted(received)

    @contextmanager
    def until_interrupted(self) -> Iterator[None]:
        """For work without collectives: a signal ends it in this process, and after it all
        processes stop.
        """
        with suppress(Interrupted):
            yield
        self.check_all()
