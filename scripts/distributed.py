"""Several processes as one run: which this is, who does which part, and how the parts come together.

A process on its own is process 0 of 1: sharing out and gathering then do nothing. What all processes call, all must call in the
same order. The launcher (torchrun, mpirun, or srun with --kill-on-bad-exit=1) ends a job in which one process died.
"""

import contextlib
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from scripts.device import resolve_device
from scripts.errors import USAGE_ERROR, UserError, error_line

TIMEOUT_MINUTES = 120.0
"""How long processes wait for each other, as while process 0 draws pictures; then the job ends in an error."""

Part = TypeVar("Part", bound=Sequence[int])
_local_rank = 0


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes files and talks."""
    return rank() == 0


def shard(indices: Part) -> Part:
    """This process's part of `indices`: neighbours, about as many as the others get, possibly none."""
    first, end = (len(indices) * r // world_size() for r in (rank(), rank() + 1))
    return indices[first:end]  # type: ignore[return-value]  # a slice of a range is a range, of a list a list


def barrier() -> None:
    """Wait for all."""
    gather(None)


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """The body runs in process 0, then in the others: for what leaves a file that the others read."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def from_main(value: Any) -> Any:
    """What process 0 gives."""
    box = [value]
    if world_size() > 1:
        dist.broadcast_object_list(box)
    return box[0]


def gather(value: Any) -> list[Any]:
    """Every process's value, by rank."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """All processes' rows (n, ...), in the order of ranks, on the CPU; n may differ, and be 0."""
    return torch.cat(gather(rows.detach().cpu())) if world_size() > 1 else rows


def compute_rows(indices: Part, compute: Callable[[Part], torch.Tensor]) -> torch.Tensor:
    """`compute(indices)`, shared out: a row for each index, at least one index."""
    mine = shard(indices)
    # With fewer indices than processes some compute a row that is thrown away, and so know its shape.
    rows = compute(mine if len(mine) else indices[-1:])  # type: ignore[arg-type]
    return gather_rows(rows[: len(mine)])


def averaging_gradients(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` so that a backward pass leaves the average of all processes' gradients in its parameters.

    Weights become those of process 0. The wrapper has another name for every parameter: keep `model` for all else.
    """
    if world_size() == 1:
        return model
    return nn.parallel.DistributedDataParallel(
        model, device_ids=[device] if device.type == "cuda" else None, broadcast_buffers=False
    )


def averaging_after(model: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
    """For forward and backward pass of one of several parts of a batch: gradients are averaged after the last one only."""
    return contextlib.nullcontext() if world_size() == 1 or last else model.no_sync()  # type: ignore[operator]


def device(name: str) -> torch.device:
    """The device that config.device names, for this process: the i-th process of a machine gets its i-th GPU.

    Raises UserError if it is not to be had.
    """
    return resolve_device(name, _local_rank)


@contextlib.contextmanager
def processes(timeout_minutes: float = TIMEOUT_MINUTES) -> Iterator[None]:
    """Join the other processes of this job, if there are any, for as long as the context lasts; only process 0 prints."""
    launcher = _launcher()
    if launcher is None:
        yield
        return
    abort: Callable[[int], object] = os._exit
    try:
        if launcher == "mpirun":
            from mpi4py import MPI

            abort = MPI.COMM_WORLD.Abort
        _join(launcher, timedelta(minutes=timeout_minutes))
        with contextlib.ExitStack() as stack:
            if not is_main():
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
            yield
        dist.destroy_process_group()
    except BaseException as error:
        _end(error, abort)


def _launcher() -> str | None:
    """What started this process as one of several, by the environment that it sets; None for a process on its own."""
    several = {
        "torchrun": os.environ.get("WORLD_SIZE") if "RANK" in os.environ else None,
        # Only a step that srun started has a number of tasks: a job script and a shell in an allocation are on their own.
        "srun": os.environ.get("SLURM_STEP_NUM_TASKS") if "SLURM_PROCID" in os.environ else None,
        "mpirun": os.environ.get("OMPI_COMM_WORLD_SIZE") or os.environ.get("PMI_SIZE"),
    }
    return next((name for name, size in several.items() if size and int(size) > 1), None)


def _join(launcher: str, timeout: timedelta) -> None:
    global _local_rank
    store = None
    if launcher == "torchrun":
        number, size, _local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", 0))
    elif launcher == "srun":
        number, size, _local_rank = (
            int(os.environ[name]) for name in ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
        )
        local_size = size if os.environ.get("SLURM_STEP_NUM_NODES") == "1" else 0
        if local_size == size:
            os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(20000 + int(os.environ["SLURM_JOB_ID"]) % 12000))
        if "MASTER_ADDR" not in os.environ:
            raise UserError("srun on several machines: set MASTER_ADDR to that of process 0, see docs/cluster.md")
    else:
        from mpi4py import MPI

        world = MPI.COMM_WORLD
        number, size = world.rank, world.size
        local = world.Split_type(MPI.COMM_TYPE_SHARED)
        _local_rank, local_size = local.rank, local.size
        host, port = "127.0.0.1" if local_size == size else socket.gethostname(), 0
        if number == 0:
            store = TCPStore(host, port, size, True, timeout, wait_for_workers=False)
            port = store.port
        host, port = world.bcast((host, port))
        store = store or TCPStore(host, port, size, False, timeout)
    if local_size == size:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # no other machine has any business with it
    # What is small or not on a GPU goes through Gloo everywhere; NCCL averages gradients.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=timeout)


def _end(error: BaseException, abort: Callable[[int], object]) -> NoReturn:
    """Say why and end this process at once, upon which the launcher ends the others; communication may hang by now."""
    code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
    if rank() > 0:
        time.sleep(2)  # what went wrong everywhere is told by process 0 alone, upon whose end the launcher ends this one
    if isinstance(error, UserError | OSError):
        code = USAGE_ERROR
        print(error_line(error), file=sys.stderr)
    elif not isinstance(error, SystemExit):
        print(f"process {rank()} of {world_size()}:\n{traceback.format_exc()}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    abort(code)
    raise AssertionError("unreachable")
