"""Several processes, one result: who does which part, and how the parts come together.

A process on its own is the only one of a world of size 1: the same code, in which sharing out and gathering do nothing, and
PyTorch's process groups are not touched.
"""

import contextlib
import json
import os
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar

from scripts.errors import USAGE_ERROR, UserError, error_line
from scripts.launch import LOOPBACK, Launch, find_launch

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

    from scripts.peers import Peers

PATIENCE = timedelta(hours=12)
"""How long processes wait for each other, as while process 0 computes a score. Deaths are noticed otherwise: see `peers`."""
CRASH = 1

Part = TypeVar("Part", bound=Sequence[int])


@dataclass(frozen=True)
class World:
    """This process among `size`. What all call, all must call in the same order."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among the processes of this machine."""

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and talks."""
        return self.rank == 0

    def shard(self, indices: Part) -> Part:
        """This process's part of `indices`: neighbours, about as many as the others get, possibly none."""
        first, end = (len(indices) * rank // self.size for rank in (self.rank, self.rank + 1))
        return indices[first:end]  # type: ignore[return-value]  # a slice of a range is a range, of a list a list

    def barrier(self) -> None:
        """Wait for all."""
        self.max(0)

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """The body runs in process 0, then in the others: for what leaves a file that the others read."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    def max(self, value: int) -> int:
        """The largest of all processes' values."""
        if self.size == 1:
            return value
        import torch
        import torch.distributed as dist

        largest = torch.tensor(value)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def from_main(self, value: Any) -> Any:
        """What process 0 gives, as plain data that JSON can hold."""
        return self.gather_plain(value if self.is_main else None)[0]

    def gather_plain(self, value: Any) -> list[Any]:
        """Every process's value, by rank: plain data that JSON can hold."""
        if self.size == 1:
            return [value]
        import torch

        encoded = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        return [json.loads(part.numpy().tobytes()) for part in self._gather_parts(encoded)]

    def gather_rows(self, rows: "torch.Tensor") -> "torch.Tensor":
        """All processes' rows, in the order of ranks, on the CPU (where there is one process, as they are).

        rows: (n, ...), n possibly another in each process, also 0; type and the other dimensions the same in all.
        """
        if self.size == 1:
            return rows
        import torch

        return torch.cat(self._gather_parts(rows))

    def compute_rows(self, indices: Part, compute: "Callable[[Part], torch.Tensor]") -> "torch.Tensor":
        """`compute(indices)`, shared out: a row for each index, at least one index."""
        mine = self.shard(indices)
        # With fewer indices than processes some compute a row that is thrown away, and so know its shape.
        rows = compute(mine if len(mine) else indices[-1:])  # type: ignore[arg-type]
        return self.gather_rows(rows[: len(mine)])

    def averaging_gradients(self, model: "nn.Module", device: "torch.device") -> "nn.Module":
        """`model` so that a backward pass leaves the average of all processes' gradients in its parameters.

        Weights become those of process 0. The wrapper has another name for every parameter: keep `model` for all else.
        """
        if self.size == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None, broadcast_buffers=False)

    @contextlib.contextmanager
    def averaging_after(self, model: "nn.Module", last: bool) -> Iterator[None]:
        """For forward and backward pass of one of several parts of a batch: gradients are averaged after the last one only."""
        with contextlib.nullcontext() if self.size == 1 or last else model.no_sync():  # type: ignore[operator]
            yield

    def device(self, name: str) -> "torch.device":
        """The device that config.device names, for this process: the i-th process of a machine gets its i-th GPU.

        Raises UserError if it is not to be had, or if processes have devices of different kinds or the same GPU.
        """
        from scripts.device import resolve_device

        device = resolve_device(name, self.local_rank)
        if self.size > 1:
            import torch

            gpu = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None
            owners: dict[Any, int] = {}
            for rank, (kind, other) in enumerate(self.gather_plain([device.type, gpu])):
                if kind != device.type:
                    raise UserError(f"config.device = {name!r}: {kind} in process {rank}, {device.type} in {self.rank}")
                if other is not None and owners.setdefault(other, rank) != rank:
                    raise UserError(
                        f"config.device = {name!r}: processes {owners[other]} and {rank} have the same GPU; start one for each"
                    )
        return device

    def _gather_parts(self, rows: "torch.Tensor") -> "list[torch.Tensor]":
        import torch
        import torch.distributed as dist

        rows = rows.detach().cpu()
        counts = [torch.tensor(0) for _ in range(self.size)]
        dist.all_gather(counts, torch.tensor(len(rows)))
        longest = int(max(counts))
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return [part[: int(count)] for part, count in zip(parts, counts, strict=True)]


ALONE = World()
"""A process on its own."""


@contextlib.contextmanager
def processes() -> Iterator[World]:
    """This process's world, for as long as the context lasts.

    One process of several never leaves the context by an exception: an error in one ends all of them, with its message once,
    on process 0's stderr, and the exit code that a process on its own would have. Only process 0 prints anything else.
    """
    launch = find_launch()
    if launch is None:
        yield ALONE
        return
    import torch.distributed as dist

    peers = None
    try:
        peers, store = _meet(launch)
        with _quiet(peers):
            _set_up_process_group(launch, store)
            yield World(launch.rank, launch.size, launch.local_rank)
            dist.destroy_process_group()
            peers.close()
    except BaseException as error:
        _end_all(error, launch, peers)


def _meet(launch: Launch) -> "tuple[Peers, Store]":
    """Find the other processes. Raises UserError if they do not all come."""
    import torch.distributed as dist

    from scripts.peers import MEETING, Hub, Spoke

    if launch.one_machine:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # no other machine has any business with it
    timeout = timedelta(seconds=MEETING)
    is_main = launch.rank == 0
    host = launch.address
    try:
        store: Store
        if launch.launcher == "mpirun":
            host, store = _meet_by_mpi(launch)
        elif launch.launcher == "torchrun":
            # torchrun may keep the store itself
            store = next(dist.rendezvous("env://", timeout=timeout))[0]  # type: ignore[attr-defined]
        else:
            store = _store(launch, host, launch.port)
        if is_main:
            hub = Hub(launch.size, launch.one_machine)
            store.set("peers", hub.address)
            hub.accept_all()
            return hub, store
        return Spoke(launch.rank, launch.size, host, store.get("peers").decode()), store
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"process {launch.rank} of {launch.size} cannot meet the others at {host}:{launch.port or 'a port that MPI tells'} "
            f"({str(error).splitlines()[0]}); check the address (MASTER_ADDR, MASTER_PORT), and that all processes run"
        ) from None


def _meet_by_mpi(launch: Launch) -> "tuple[str, Store]":
    """MPI tells all processes where process 0 is, and has then done its part: what ends a process is not its business."""
    import mpi4py

    mpi4py.rc.initialize = mpi4py.rc.finalize = False  # before the next import, which would do both
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UserError(f"mpirun: mpi4py finds no MPI library ({error}); for MPICH's: pip install mpich") from None
    MPI.Init()
    if MPI.COMM_WORLD.size != launch.size:
        raise UserError(f"mpirun: it started {launch.size} processes, but mpi4py uses another MPI library than mpirun's own")
    meeting: tuple[str, int] | None = None
    if launch.rank == 0:
        host = LOOPBACK if launch.one_machine else socket.gethostname()
        store = _store(launch, host, 0)
        meeting = host, store.port
    host, port = MPI.COMM_WORLD.bcast(meeting)
    MPI.Finalize()
    if launch.rank != 0:
        store = _store(launch, host, port)
    return host, store


def _store(launch: Launch, host: str, port: int) -> "TCPStore":
    """What process 0 keeps at this address, and the others reach there. Port 0 takes any."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    from scripts.peers import MEETING

    timeout = timedelta(seconds=MEETING)
    return TCPStore(host, port, launch.size, launch.rank == 0, timeout, wait_for_workers=False)


def _set_up_process_group(launch: Launch, store: "Store") -> None:
    import torch
    import torch.distributed as dist

    # What is small or not on a GPU goes through Gloo everywhere; NCCL averages gradients.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=launch.rank, world_size=launch.size, timeout=PATIENCE)


@contextlib.contextmanager
def _quiet(peers: "Peers") -> Iterator[None]:
    """Warnings are printed once, by process 0; what others print besides is dropped."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """In place of `warnings.showwarning`: by way of process 0."""
        peers.warn(warnings.formatwarning(message, category, filename, lineno, line).rstrip())

    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.showwarning = show
        if peers.rank > 0:
            nowhere = stack.enter_context(open(os.devnull, "w"))  # noqa: PTH123  # os.devnull is no path of a file
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield


def _end_all(error: BaseException, launch: Launch, peers: "Peers | None") -> NoReturn:
    """Never returns."""
    from scripts.peers import Ended

    if peers is None:
        if not isinstance(error, UserError):
            raise error
        print(error_line(error), file=sys.stderr)
        sys.exit(USAGE_ERROR)  # each says it for itself, as there is no way to say it once
    if isinstance(error, Ended):
        peers.leave()
    if isinstance(error, UserError | OSError):
        peers.fail(error_line(error), USAGE_ERROR)
    if isinstance(error, KeyboardInterrupt):
        peers.fail("interrupted", 130)
    peers.leave_if_over(5)  # communication fails where another process has died, and that is what is to be told
    print(f"process {launch.rank} of {launch.size}:\n{traceback.format_exc()}", file=sys.__stderr__, flush=True)
    peers.fail(
        f"error: process {launch.rank} of {launch.size} failed ({type(error).__name__}: {error}); all others end, too", CRASH
    )
