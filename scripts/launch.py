"""Which of how many processes this is: what torchrun, srun or mpirun say through the environment. Imports nothing heavy."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from scripts.errors import UserError

LOOPBACK = "127.0.0.1"
RESERVED_STEPS = 0xFFFFFFF0
"""SLURM numbers a job's batch script, its interactive shell and the like from here on: none of them is a step of srun's."""


@dataclass(frozen=True)
class Launch:
    """One process of several."""

    launcher: Literal["torchrun", "srun", "mpirun"]
    rank: int
    """From 0; process 0 is the one that writes."""
    size: int
    """At least 2."""
    local_rank: int
    """From 0, among the processes of this machine."""
    one_machine: bool
    """Whether all processes are known to be on this machine."""
    address: str = ""
    """Where process 0 is to be met; mpirun leaves it to MPI."""
    port: int = 0


def find_launch(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """The place of this process among others, None for a process on its own.

    A job script and a shell inside a SLURM allocation are on their own: only srun makes processes of a job.
    Raises UserError for variables that contradict each other.
    """
    has = environment.keys().__contains__
    if has("RANK") and has("WORLD_SIZE") and has("MASTER_ADDR"):
        launch = _torchrun(environment)
    elif has("OMPI_COMM_WORLD_SIZE"):
        names = [f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")]
        launch = _mpirun(environment, names)
    elif _is_srun_step(environment):
        launch = _srun(environment)
    elif has("PMI_SIZE"):
        launch = _mpirun(environment, ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"])
    else:
        return None
    if not 0 <= launch.rank < launch.size:
        raise UserError(f"{launch.launcher}: process {launch.rank} of {launch.size}; the first is 0: mend the environment")
    return launch if launch.size > 1 else None


def _torchrun(environment: Mapping[str, str]) -> Launch:
    size = _integer(environment, "WORLD_SIZE")
    return Launch(
        "torchrun",
        rank=_integer(environment, "RANK"),
        size=size,
        local_rank=_integer(environment, "LOCAL_RANK", 0),
        one_machine=_integer(environment, "LOCAL_WORLD_SIZE", 0) == size,
        address=environment["MASTER_ADDR"],
        port=_integer(environment, "MASTER_PORT"),
    )


def _mpirun(environment: Mapping[str, str], names: list[str]) -> Launch:
    """MPICH, Intel MPI or Open MPI: `names` of the variables with rank, size, local rank and processes on this machine."""
    rank, size, local_rank, local_size = names
    return Launch(
        "mpirun",
        rank=_integer(environment, rank),
        size=_integer(environment, size),
        local_rank=_integer(environment, local_rank, 0),
        one_machine=_integer(environment, local_size, 0) == _integer(environment, size),
    )


def _is_srun_step(environment: Mapping[str, str]) -> bool:
    """Also under `srun --mpi=pmi2`, but not under an mpirun that started its daemons, one a machine, by srun."""
    if "SLURM_PROCID" not in environment or not 0 <= _integer(environment, "SLURM_STEP_ID", -1) < RESERVED_STEPS:
        return False
    return environment.get("PMI_SIZE", environment.get("SLURM_STEP_NUM_TASKS")) == environment.get("SLURM_STEP_NUM_TASKS")


def _srun(environment: Mapping[str, str]) -> Launch:
    """MASTER_ADDR and MASTER_PORT, where the job script sets them, go before what is made of node list and job number."""
    one_machine = _integer(environment, "SLURM_STEP_NUM_NODES", _integer(environment, "SLURM_NNODES", 0)) == 1
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    address = environment.get("MASTER_ADDR") or (LOOPBACK if one_machine else first_host(nodes))
    # Jobs that share a machine get different ports, and so do steps of a job.
    port = 20000 + (_integer(environment, "SLURM_JOB_ID", 0) * 16 + _integer(environment, "SLURM_STEP_ID")) % 12000
    return Launch(
        "srun",
        rank=_integer(environment, "SLURM_PROCID"),
        size=_integer(environment, "SLURM_STEP_NUM_TASKS", _integer(environment, "SLURM_NTASKS", 1)),
        local_rank=_integer(environment, "SLURM_LOCALID", 0),
        one_machine=one_machine,
        address=address,
        port=_integer(environment, "MASTER_PORT", port),
    )


def first_host(nodes: str) -> str:
    """The first of SLURM's list of machines: "gpu003" of "gpu[003-005,9],login1". Raises UserError if there is none."""
    host = re.sub(r"\[([^],-]+)[^]]*\]", r"\1", nodes).split(",")[0]
    if not host or "[" in host:
        raise UserError(f"SLURM_STEP_NODELIST={nodes}: names no machine; set MASTER_ADDR to that of process 0")
    return host


def _integer(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    value = environment.get(name, default)
    try:
        return int(value)  # type: ignore[arg-type]  # None is what is to be reported
    except (TypeError, ValueError):
        raise UserError(f"{name}={value}: the launcher should have set this variable to a whole number") from None
