"""Brings what torchrun and Slurm say of their processes into one form: torchrun's environment variables.

torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Of Slurm's variables only those of
a step count (srun, one task a GPU), because a batch script has the others too and is a single process.
"""

import os
import re

from dada_det.errors import UserError

# --launcher -> what starts the processes, and a variable that it sets for each.
STARTERS = {"pytorch": ("torchrun", "LOCAL_RANK"), "slurm": ("srun", "SLURM_PROCID"),
            "mpi": ("mpirun", "OMPI_COMM_WORLD_LOCAL_RANK")}
FIRST_PORT, PORTS = 20_000, 20_000  # first and number of the ports; the job's number chooses one


def started_processes() -> int:
    """How many processes torchrun or srun has started together with this one, on all machines; 1 where none has.

    Slurm's variables are then there under torchrun's names too. MASTER_ADDR and MASTER_PORT that are set stay.
    """
    environment = os.environ
    if "LOCAL_RANK" not in environment and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        environment.update(
            RANK=environment["SLURM_PROCID"], WORLD_SIZE=environment["SLURM_STEP_NUM_TASKS"],
            LOCAL_RANK=environment["SLURM_LOCALID"],
            LOCAL_WORLD_SIZE=str(tasks_of_nodes(environment["SLURM_STEP_TASKS_PER_NODE"])[int(environment["SLURM_NODEID"])]))
        environment.setdefault("MASTER_ADDR", first_host(environment["SLURM_STEP_NODELIST"]))
        number = int(environment["SLURM_JOB_ID"]) + int(environment.get("SLURM_STEP_ID", "0"))
        environment.setdefault("MASTER_PORT", str(FIRST_PORT + number % PORTS))
    return int(environment["WORLD_SIZE"]) if "LOCAL_RANK" in environment else 1


def check_processes(asked: int, started: int) -> None:
    """Raises UserError if --gpus asks for another number of processes than a launcher has started."""
    if started > 1 and asked not in (1, started):
        raise UserError(f"torchrun or srun has started {started} processes and --gpus says {asked}; leave --gpus out, and "
                        "start one process a GPU (torchrun --nproc-per-node, srun --ntasks-per-node)")


def check_launcher(launcher: str) -> None:
    """Raises UserError if --launcher names what has not started this process."""
    starter, variable = STARTERS.get(launcher, ("", ""))
    if starter and not {"LOCAL_RANK", variable} & set(os.environ):
        raise UserError(f"--launcher {launcher} is for processes that {starter} starts, and it has not started this one "
                        f"({variable} is not set); leave it out, or begin the command with {starter}")


def first_host(nodes: str) -> str:
    """The first machine of Slurm's list, such as gpu[03-05,9],login: gpu03."""
    found = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\]([^,\[]*))?", nodes)
    if found is None:
        raise UserError(f"SLURM_STEP_NODELIST is {nodes!r}, which names no machine; set MASTER_ADDR to the first machine")
    return "".join(part or "" for part in found.groups())


def tasks_of_nodes(text: str) -> list[int]:
    """The tasks of each machine from Slurm's list, such as 4(x2),3: [4, 4, 3]."""
    tasks: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        tasks += [int(count)] * int(times or 1)
    return tasks


def one_gpu_each(processes: int) -> bool:
    """Whether Slurm has bound a GPU of its own to each of this machine's processes, who then see one device."""
    return "SLURM_GPUS_PER_TASK" in os.environ or int(os.environ.get("SLURM_GPUS_ON_NODE", "0")) >= processes
