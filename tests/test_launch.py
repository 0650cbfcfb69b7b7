"""Where a process stands among others, from the variables that launchers set."""

import pytest

from scripts.errors import UserError
from scripts.launch import Launch, find_launch, first_host

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "node1", "MASTER_PORT": "29500",
}  # fmt: skip
STEP = {
    "SLURM_JOB_ID": "1234", "SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "gpu[003-005,9],login1",
}  # fmt: skip
BATCH = {"SLURM_JOB_ID": "1234", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8", "SLURM_NNODES": "2"}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
OPEN_MPI = {f"OMPI_COMM_WORLD_{name}": value for name, value in (("RANK", "3"), ("SIZE", "4"))} | {
    f"OMPI_COMM_WORLD_LOCAL_{name}": value for name, value in (("RANK", "1"), ("SIZE", "2"))
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (TORCHRUN, Launch("torchrun", 3, 4, 1, False, "node1", 29500)),
        (TORCHRUN | STEP, Launch("torchrun", 3, 4, 1, False, "node1", 29500)),  # srun starts one torchrun on each machine
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "4"}, Launch("torchrun", 3, 4, 1, True, "node1", 29500)),
        (STEP | {"MASTER_PORT": "1"}, Launch("srun", 5, 8, 1, False, "gpu003", 1)),
        (STEP | {"MASTER_PORT": "1", "MASTER_ADDR": "ib3"}, Launch("srun", 5, 8, 1, False, "ib3", 1)),
        (STEP | {"MASTER_PORT": "1", "SLURM_STEP_NUM_NODES": "1"}, Launch("srun", 5, 8, 1, True, "127.0.0.1", 1)),
        (STEP | {"MASTER_PORT": "1", "PMI_RANK": "5", "PMI_SIZE": "8"}, Launch("srun", 5, 8, 1, False, "gpu003", 1)),  # pmi2
        (MPICH, Launch("mpirun", 1, 2, 1, True)),
        (MPICH | STEP | {"SLURM_STEP_NUM_TASKS": "1"}, Launch("mpirun", 1, 2, 1, True)),  # mpirun started by srun's daemons
        (OPEN_MPI, Launch("mpirun", 3, 4, 1, False)),
        (OPEN_MPI | BATCH, Launch("mpirun", 3, 4, 1, False)),
    ],
)
def test_one_of_several(environment: dict[str, str], expected: Launch) -> None:
    assert find_launch(environment) == expected


@pytest.mark.parametrize(
    "environment",
    [
        {},
        TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"},
        BATCH,  # python train.py in a job script, without srun
        BATCH | {"SLURM_STEP_ID": str(2**32 - 6)},  # in the shell that salloc opens
        STEP | {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},  # in srun --pty bash, in a job of eight tasks
        MPICH | {"PMI_RANK": "0", "PMI_SIZE": "1"},
        {"RANK": "1", "WORLD_SIZE": "2"},  # left over from something else: nowhere to meet
    ],
)
def test_on_its_own(environment: dict[str, str]) -> None:
    assert find_launch(environment) is None


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("gpu[003-005,9]", "gpu003"),
        ("gpu7", "gpu7"),
        ("a1,b[1-2]", "a1"),
        ("rack[2,5]-n[01-16].ib,login", "rack2-n01.ib"),
    ],
)
def test_first_machine_of_a_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_ports_of_jobs_that_share_a_machine() -> None:
    """Different for neighbouring jobs and steps, and below the range from which systems take ports for connections."""
    ports = set()
    for job in range(1000, 1010):
        for step in range(3):
            launch = find_launch(STEP | {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)})
            assert launch is not None
            ports.add(launch.port)
    assert len(ports) == 30
    assert all(20000 <= port < 32768 for port in ports)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (TORCHRUN | {"RANK": "first"}, "RANK=first"),
        (TORCHRUN | {"RANK": "4"}, "process 4 of 4"),
        (TORCHRUN | {"MASTER_PORT": ""}, "MASTER_PORT="),
        (STEP | {"SLURM_STEP_NODELIST": ""}, "set MASTER_ADDR"),
    ],
)
def test_variables_that_cannot_be(environment: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_launch(environment)
