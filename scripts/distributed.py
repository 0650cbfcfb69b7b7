"""Several processes as one run: rank and number of processes, sharing out work, gathering results.

A process on its own is process 0 of 1: sharing out and gathering then do nothing. Collective functions (barrier, main_first,
from_main, gather, gather_rows, compute_rows) must be called by all processes in the same order. The launcher (torchrun, mpirun,
or srun with --kill-on-bad-exit=1) ends a job in which one process died.
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

from scripts.device import resolve_device
from scripts.errors import USAGE_ERROR, UserError, error_line

TIMEOUT_MINUTES = 120.0
"""How long a collective waits for the other processes, for example while process 0 samples; then the job ends in an error."""

Part = TypeVar("Part", bound=Sequence[int])
_local_rank = 0


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes files and prints."""
    return rank() == 0


def shard(indices: Part) -> Part:
    """This process's part of `indices`: a contiguous slice, of equal sizes to within one, possibly empty."""
    first, end = (len(indices) * r // world_size() for r in (rank(), rank() + 1))
    return indices[first:end]  # type: ignore[return-value]  # a slice of a range is a range, of a list a list


def barrier() -> None:
    """Wait until all processes are here."""
    gather(None)


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """The body runs in process 0, then in the others: for work that leaves a file that the others read."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def from_main(value: Any) -> Any:
    """Process 0's value; the other processes' are ignored."""
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
    """`compute(indices)`, one row per index, computed by all processes together and returned to all; `indices` is not empty."""
    mine = shard(indices)
    # A process without indices computes one row, to know the shape, and drops it.
    rows = compute(mine if len(mine) else indices[-1:])  # type: ignore[arg-type]
    return gather_rows(rows[: len(mine)])


def averaging_gradients(model: nn.Module, device: torch.device) -> nn.Module:
    """`model`, wrapped so that a backward pass leaves the average of all processes' gradients in its parameters.

    Weights become those of process 0. The wrapper renames all parameters: use `model` itself for everything else.
    """
    if world_size() == 1:
        return model
    return nn.parallel.DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def averaging_after(model: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
    """Context for forward and backward pass of one part of a batch: gradients are averaged after the last part only."""
    return contextlib.nullcontext() if world_size() == 1 or last else model.no_sync()  # type: ignore[operator]


def device(name: str) -> torch.device:
    """What config.device names; the i-th process of a machine gets its i-th GPU. Raises UserError if there is none."""
    return resolve_device(name, _local_rank)


@contextlib.contextmanager
def processes(timeout_minutes: float = TIMEOUT_MINUTES) -> Iterator[None]:
    """Join the other processes of this job, if there are any, while the context lasts; only process 0 prints to stdout.

    An exception in one process ends the whole job: this process says why and exits, and the launcher ends the others.
    """
    launcher = _launcher()
    if launcher is None:
        yield
        return
    try:
        _join(launcher, timedelta(minutes=timeout_minutes))
        with contextlib.ExitStack() as stack:
            if not is_main():
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
            yield
        dist.destroy_process_group()
    except BaseException as error:
        _end_job(launcher, error)


def _launcher() -> str | None:
    """What started this process as one of several, by the variables that it sets; None for a process on its own."""
    env = os.environ
    sizes = {
        "torchrun": env.get("WORLD_SIZE") if "RANK" in env else None,
        # MPICH's mpirun sets MPI_LOCALNRANKS; srun does not, but may set PMI_SIZE.
        "mpirun": env.get("PMI_SIZE" if "MPI_LOCALNRANKS" in env else "OMPI_COMM_WORLD_SIZE"),
        # Only a step that srun started has a number of tasks: a job script or a shell in an allocation is one process.
        "srun": env.get("SLURM_STEP_NUM_TASKS") if "SLURM_PROCID" in env else None,
    }
    return next((name for name, size in sizes.items() if size and int(size) > 1), None)


def _join(launcher: str, timeout: timedelta) -> None:
    """Set torchrun's environment variables where another launcher was used, and meet the others where they say."""
    global _local_rank
    if launcher == "mpirun":
        variables = _mpi_variables()
    elif launcher == "srun":
        variables = _slurm_variables()
    else:
        variables = dict(os.environ)
    os.environ.update(variables)
    _local_rank = int(variables["LOCAL_RANK"])
    if variables.get("LOCAL_WORLD_SIZE") == variables["WORLD_SIZE"]:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine, whatever its name resolves to
    # Objects and tensors on the CPU go through Gloo, gradients on GPUs through NCCL.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, timeout=timeout)


def _mpi_variables() -> dict[str, str]:
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    local = world.Split_type(MPI.COMM_TYPE_SHARED)
    with socket.socket() as free:
        free.bind(("", 0))
        host = "127.0.0.1" if local.size == world.size else socket.gethostname()
        host, port = world.bcast((host, free.getsockname()[1]))  # process 0's
    return _variables(world.rank, world.size, local.rank, local.size, host, port)


def _slurm_variables() -> dict[str, str]:
    rank, size, local_rank = (int(os.environ[f"SLURM_{name}"]) for name in ("PROCID", "STEP_NUM_TASKS", "LOCALID"))
    one_machine = os.environ.get("SLURM_STEP_NUM_NODES") == "1"
    host = os.environ.get("MASTER_ADDR", "127.0.0.1" if one_machine else None)
    if host is None:
        raise UserError("srun on several machines: set MASTER_ADDR to the name of the first, see docs/cluster.md")
    port = os.environ.get("MASTER_PORT", 20000 + int(os.environ["SLURM_JOB_ID"]) % 12000)
    return _variables(rank, size, local_rank, size if one_machine else 0, host, port)


def _variables(*values: int | str) -> dict[str, str]:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return dict(zip(names, map(str, values), strict=True))


def _end_job(launcher: str, error: BaseException) -> NoReturn:
    """Print the error and exit at once, without clean-up, which could wait for the other processes."""
    if rank() > 0:
        time.sleep(2)  # an error that all processes have is printed by process 0 only: the launcher then ends this one
    expected = isinstance(error, UserError | OSError)
    print(error_line(error) if expected else f"process {rank()}:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    code = USAGE_ERROR if expected else 1
    if launcher == "mpirun":
        from mpi4py import MPI

        MPI.COMM_WORLD.Abort(code)
    os._exit(code)
