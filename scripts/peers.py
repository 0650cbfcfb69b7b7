"""Processes of one job keep an eye on each other: when one fails or dies, all end, and one line says why.

Every process holds a connection to process 0. Nothing is sent over it while all is well, and nothing is timed: the kernel
closes a connection when its process dies, and keeps it while its process is busy, however long. (Of a machine that loses
its power, TCP's keep-alive tells.) So processes may wait for each other for hours, and hear of a death at once.
"""

import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

GRACE = 10.0
"""Seconds that a process has to unwind, so that no half-written file stays, before it is ended where it is."""
MEETING = 300.0
"""Seconds for all processes to be there: on a busy file system imports alone may take minutes."""
DRAINING = 2.0
"""Seconds that process 0 reads on when all end, until the others have gone."""
LEAVING = 60.0
"""Seconds that process 0 waits at the end for the others to leave."""
DIED = 1
"""Exit code of a job in which a process died."""


class Ended(BaseException):
    """Raised in the main thread when another process has failed: not an Exception, so that nothing takes it for its own."""


class Peers:
    """What both sides have in common: how a process ends because of another. Make it in the main thread."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.exit_code: int | None = None
        self._is_leaving = False
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        signal.signal(signal.SIGUSR1, self._raise)

    def warn(self, text: str) -> None:
        """Have process 0 print a line, once however many processes send it."""
        raise NotImplementedError

    def fail(self, text: str, code: int) -> NoReturn:
        """End all processes with `code`, process 0 printing `text` unless another failure came first."""
        raise NotImplementedError

    def close(self) -> None:
        """Leave in good order, at the same place of the program as the others."""
        raise NotImplementedError

    def leave_if_over(self, seconds: float) -> None:
        """End this process if within so many seconds it turns out that another failed."""
        self._is_leaving = True
        if self._is_over.wait(seconds):
            self.leave()

    def leave(self) -> NoReturn:
        """End this process without waiting for anything: threads of communication may hang by now."""
        assert self.exit_code is not None
        sys.stdout.flush()
        os._exit(self.exit_code)

    def _claim(self, code: int) -> bool:
        """Whether this is the first reason to end; then say why, and `_unwind`."""
        with self._lock:
            if self.exit_code is not None:
                return False
            self.exit_code = code
        return True

    def _unwind(self) -> None:
        """Have the main thread unwind and end, from any thread."""
        self._is_over.set()
        if threading.current_thread() is not threading.main_thread():
            threading.Thread(target=self._leave_later, daemon=True).start()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    def _leave_later(self) -> None:
        time.sleep(GRACE)
        self.leave()

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if self.exit_code is not None and not self._is_leaving:
            self._is_leaving = True
            raise Ended


class Hub(Peers):
    """Process 0: hears of everything, prints it, tells the others."""

    def __init__(self, size: int, local: bool) -> None:
        """local: all processes are on this machine. `address` then says what the others need for joining."""
        super().__init__(0, size)
        self._server = socket.create_server(("127.0.0.1" if local else "", 0), backlog=size)
        self._token = secrets.token_hex(16)
        self.address = json.dumps([self._server.getsockname()[1], self._token])
        self._links: dict[int, _Link] = {}
        self._readers: list[threading.Thread] = []
        self._printed: set[str] = set()

    def accept_all(self) -> None:
        """Wait until every process has joined. Raises TimeoutError if one does not within `MEETING`."""
        deadline = time.monotonic() + MEETING
        while len(self._links) < self.size - 1:
            self._server.settimeout(max(0.1, deadline - time.monotonic()))
            link = _Link(self._server.accept()[0])
            hello = next(link.messages, {})
            if hello.get("token") == self._token:
                self._links[hello["rank"]] = link
            else:
                link.close()  # not one of ours
        self._server.close()
        for rank, link in self._links.items():
            self._readers.append(threading.Thread(target=self._listen, args=(rank, link), daemon=True))
            self._readers[-1].start()

    def warn(self, text: str) -> None:
        with self._lock:
            is_new = text not in self._printed
            self._printed.add(text)
        if is_new:
            print(text, file=sys.stderr, flush=True)

    def fail(self, text: str, code: int) -> NoReturn:
        self._is_leaving = True
        self._fail(text, code)
        self.leave()

    def leave(self) -> NoReturn:
        # What lies unread in a connection when it is closed makes the kernel reset it, and the others may miss what was sent.
        deadline = time.monotonic() + DRAINING
        for reader in self._readers:
            reader.join(max(0.0, deadline - time.monotonic()))
        super().leave()

    def close(self) -> None:
        for link in self._links.values():
            link.send(bye=True)
        deadline = time.monotonic() + LEAVING
        for reader in self._readers:
            reader.join(max(0.0, deadline - time.monotonic()))

    def _fail(self, text: str, code: int) -> None:
        if self._claim(code):
            print(text, file=sys.stderr, flush=True)
            for link in self._links.values():
                link.send(end=code)
            self._unwind()

    def _listen(self, rank: int, link: "_Link") -> None:
        for message in link.messages:
            if "warn" in message:
                self.warn(message["warn"])
            elif "fail" in message:
                self._fail(message["fail"], message["code"])
            elif "bye" in message:
                return
        self._fail(_died(rank, self.size), DIED)


class Spoke(Peers):
    """Any other process."""

    def __init__(self, rank: int, size: int, host: str, address: str) -> None:
        """address: process 0's `Hub.address`, reached at `host`."""
        super().__init__(rank, size)
        port, token = json.loads(address)
        self._link = _Link(socket.create_connection((host, port), timeout=MEETING))
        self._link.send(rank=rank, token=token)
        threading.Thread(target=self._listen, daemon=True).start()

    def warn(self, text: str) -> None:
        self._link.send(warn=text)

    def fail(self, text: str, code: int) -> NoReturn:
        self._is_leaving = True
        self._link.send(fail=text, code=code)
        if not self._is_over.wait(GRACE):
            self._claim(code)
        self.leave()

    def close(self) -> None:
        self._link.send(bye=True)

    def _listen(self) -> None:
        for message in self._link.messages:
            if "end" in message:
                self._claim(message["end"])
                self._unwind()
            if "bye" in message or "end" in message:
                return
        if self._claim(DIED):
            if self.rank == 1:  # one of those who notice speaks for all
                print(_died(0, self.size), file=sys.__stderr__, flush=True)
            self._unwind()


class _Link:
    """Lines of JSON over a connection; sending to a process that is gone does nothing, reading from it ends."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 4)):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        self._sending = threading.Lock()
        self.messages = self._received()
        # A loader's worker, forked from this process, would keep the connection open after this process has died.
        os.register_at_fork(after_in_child=connection.close)

    def send(self, **message: Any) -> None:
        try:
            with self._sending:
                self._connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            pass

    def _received(self) -> Iterator[dict[str, Any]]:
        with self._connection.makefile("rb") as lines:
            try:
                for line in lines:
                    yield json.loads(line)
            except (OSError, ValueError):
                return

    def close(self) -> None:
        self._connection.close()


def _died(rank: int, size: int) -> str:
    return f"error: process {rank} of {size} died without a word: killed, or out of memory? All others end, too"
