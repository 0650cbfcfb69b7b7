"""Several processes as one run; one on its own is process 0 of 1, and sharing out and gathering do
nothing.

All processes must call the collective functions (from `barrier` to `compute_rows`) in the same
order. The launcher (torchrun, mpirun, or srun with --kill-on-bad-exit=1) ends a job in which one
process died.
"""

import contextlib
import math
import os
import re
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
from torch.distributed.rendezvous import rendezvous

from scripts.errors import USAGE_ERROR, UserError, error_line, line_for, one_line

Part = TypeVar("Part", bound=Sequence[int])
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
"""Microseconds of processor time that a container may use ("max": all), and in how many."""
MEETING_MINUTES = 10
"""How long processes wait for each other at the start."""
KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 9}
"""A connection that is silent for 30 s is asked every 10 s, and lost after 9 questions."""


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def cores() -> int:
    """Return how many cores of this machine this process may use: those of its container, shared
    with its neighbours.
    """
    usable = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # macOS has none
        usable = len(os.sched_getaffinity(0))
    if CPU_MAX.exists():
        quota, period = CPU_MAX.read_text().split()
        if quota != "max":
            usable = min(usable, math.ceil(int(quota) / int(period)))
    return max(1, usable // (int(os.environ.get("LOCAL_WORLD_SIZE", 0)) or 1))


def is_main() -> bool:
    """Return whether this is the process that writes files and prints."""
    return rank() == 0


def shard(indices: Part) -> Part:
    """This process's part of `indices`: a contiguous slice, of equal sizes to within one, possibly
    empty.
    """
    first, end = (len(indices) * r // world_size() for r in (rank(), rank() + 1))
    # A slice of a range is a range, of a list a list.
    return indices[first:end]  # type: ignore[return-value]


def barrier() -> None:
    """Wait until all processes are here."""
    gather(None)  # unlike dist.barrier, also right before a process has chosen its GPU


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """The body runs in process 0, then in the others: for work that leaves a file that the others
    read.
    """
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
    """Return all processes' rows (n, ...), in the order of ranks, on the CPU; n may differ, and be
    0.
    """
    return torch.cat(gather(rows.detach().cpu()))


def compute_rows(indices: Part, compute: Callable[[Part], torch.Tensor]) -> torch.Tensor:
    """`compute(indices)`, one row per index, shared out to all processes and returned to all of
    them; `indices` is not empty.
    """
    mine = shard(indices)
    # A process without indices computes one row, to know the shape, and drops it.
    rows = compute(mine if len(mine) else indices[-1:])  # type: ignore[arg-type]
    return gather_rows(rows[: len(mine)])


def averaging_gradients(model: nn.Module, device: torch.device) -> nn.Module:
    """`model`, with process 0's weights, wrapped so that a backward pass averages gradients over
    all processes.

    The wrapper renames all parameters: use `model` itself for everything else.
    """
    if world_size() == 1:
        return model
    gpus = [device] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=gpus)


def averaging_after(model: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
    """Context for forward and backward pass of one part of a batch: gradients are averaged after
    the last part only.
    """
    if world_size() == 1 or last:
        return contextlib.nullcontext()
    return model.no_sync()  # type: ignore[operator]


@contextlib.contextmanager
def processes(timeout_minutes: float = 120.0) -> Iterator[None]:
    """Join the other processes of this job, if there are any, while the context lasts; only process
    0 prints to stdout.

    timeout_minutes: how long a collective function waits for the others, for example while process
    0 samples, before it fails. An exception in one process ends the whole job: this process says
    why and exits, and the launcher ends the others.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if "RANK" not in os.environ:
        os.environ.update(zip(names, map(str, _meet()), strict=False))  # as torchrun does
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield
        return
    try:
        if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
            # One machine, whatever its name resolves to.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        _join(timedelta(minutes=timeout_minutes))
        with (
            Path(os.devnull).open("w") as nowhere,
            contextlib.redirect_stdout(sys.stdout if is_main() else nowhere),
        ):
            yield
        dist.destroy_process_group()
    except BaseException as error:
        _end_job(error)


def _meet() -> tuple[object, ...]:
    """Rank, size, both on this machine, and process 0's address and port, if mpirun or srun started
    several processes.
    """
    env = os.environ
    # MPICH's mpirun sets MPI_LOCALNRANKS; srun does not, but may set PMI_SIZE.
    if int(env.get("PMI_SIZE" if "MPI_LOCALNRANKS" in env else "OMPI_COMM_WORLD_SIZE", 1)) > 1:
        MPI = _mpi("Open MPI" if "OMPI_COMM_WORLD_SIZE" in env else "MPICH")
        world = MPI.COMM_WORLD
        local = world.Split_type(MPI.COMM_TYPE_SHARED)
        host = "127.0.0.1" if local.size == world.size else socket.gethostname()
        with socket.socket() as free:
            free.bind(("", 0))
            meeting_point = world.bcast((host, free.getsockname()[1]))
        return world.rank, world.size, local.rank, local.size, *meeting_point
    # Only a step that srun started has a number of tasks: a job script or a shell in an allocation
    # is one process.
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) == 1:
        return ()
    size, one_machine = env["SLURM_STEP_NUM_TASKS"], env.get("SLURM_STEP_NUM_NODES") == "1"
    if not one_machine and "MASTER_ADDR" not in env:
        raise UserError(
            "srun on several machines: set MASTER_ADDR to the name of the first, see "
            "docs/cluster.md"
        )
    # A job may run several steps at a time.
    port = 20000 + (10 * int(env["SLURM_JOB_ID"]) + int(env["SLURM_STEP_ID"])) % 12000
    meeting_point = env.get("MASTER_ADDR", "127.0.0.1"), env.get("MASTER_PORT", port)
    local_size = size if one_machine else 0
    return env["SLURM_PROCID"], size, env["SLURM_LOCALID"], local_size, *meeting_point


def _mpi(launcher: str) -> Any:
    """mpi4py's MPI, initialized.

    Raises UserError if it has not the library of the mpirun that started this process.
    """
    env = os.environ
    if launcher == "Open MPI" and "MPI4PY_LIBMPI" not in env:
        env.setdefault("MPI4PY_MPIABI", "openmpi")  # the wheel can load either, and prefers MPICH's
    try:
        import mpi4py

        mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
        from mpi4py import MPI

        library = MPI.Get_library_version()
        fits = ("Open MPI" in library) == (launcher == "Open MPI")
    except (ImportError, RuntimeError) as error:
        library, fits = str(error), False
    if not fits:
        if "0" not in (env.get("OMPI_COMM_WORLD_RANK"), env.get("PMI_RANK")):
            time.sleep(10)  # while process 0 says it for all
            sys.exit(USAGE_ERROR)
        other = one_line(library)[:60]
        raise UserError(
            f"this mpirun is {launcher}'s, but mpi4py has another library ({other}): use the "
            f"mpirun of that, or name {launcher}'s library: MPI4PY_LIBMPI=/path/to/libmpi.so"
        )
    MPI.Init()
    return MPI


def _join(timeout: timedelta) -> None:
    """Join the process group, as RANK and the other variables say.

    Raises UserError if the others cannot be found.
    """
    env = os.environ
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR"):
        text = env.get(name, "")
        if not (text if name == "MASTER_ADDR" else text.isdecimal()):
            found = f"WORLD_SIZE={env['WORLD_SIZE']}, but {name}={text!r}"
            right = "a launcher sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT"
            raise UserError(f"{found}: {right}; for one process: unset RANK WORLD_SIZE")
    try:
        store, number, size = next(rendezvous("env://", timeout=timedelta(minutes=MEETING_MINUTES)))
    except dist.DistError as error:
        place, reason = f"{env['MASTER_ADDR']}:{env['MASTER_PORT']}", str(error).splitlines()[0]
        raise UserError(
            f"process {env['RANK']} of {env['WORLD_SIZE']}, on {socket.gethostname()}: "
            f"{one_line(reason)}. MASTER_ADDR and MASTER_PORT, {place}, must be process 0's "
            f"machine and a free port, and all {env['WORLD_SIZE']} must have been started"
        ) from None
    # Objects and tensors on the CPU go through Gloo, gradients on GPUs through NCCL.
    backend = "gloo"
    if torch.cuda.is_available() and dist.is_nccl_available():
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=timeout)
    # A machine that loses power or network closes no connection. The kernel finds out if it is
    # set to ask. (TCP_USER_TIMEOUT would find it sooner, but also end connections to a process
    # that is only busy.)
    for entry in Path("/proc/self/fd").glob("*"):  # Linux's
        with contextlib.suppress(OSError):  # of the listing itself
            if str(entry.readlink()).startswith("socket:"):
                with socket.socket(fileno=os.dup(int(entry.name))) as connection:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                    for timer, value in KEEPALIVE.items():
                        connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, timer), value)


def _lost(error: BaseException) -> str | None:
    """Return what to say where another process has gone or is silent; None for other errors."""
    text = one_line(error)
    if "gloo/transport" not in text and "remote process exited" not in text:
        return None
    reason = re.sub(r"^\[.*?\] |\. This is typically .*", "", text)[:200]
    look = (
        "the log of that machine says what ended it; the same command continues from what is saved"
    )
    return f"process {rank()} on {socket.gethostname()} lost another one: {reason}: {look}"


def _end_job(error: BaseException) -> NoReturn:
    """Print the error and exit at once: cleaning up could wait for the other processes."""
    if rank() > 0:
        # An error that all processes have is printed by process 0 only: the launcher then ends
        # this one.
        time.sleep(2)
    code, line = 1, line_for(error) or _lost(error)
    if line_for(error):
        code = USAGE_ERROR
    text = error_line(line) if line else f"process {rank()}:\n{traceback.format_exc()}"
    print(text, file=sys.stderr, flush=True)
    sys.stdout.flush()
    # mpirun takes an exit alone for the normal end of one process.
    if "mpi4py.MPI" in sys.modules:
        time.sleep(0.5)  # Abort may overtake the line on its way through mpirun
        sys.modules["mpi4py.MPI"].COMM_WORLD.Abort(code)
    os._exit(code)
