"""What launchers of several processes tell each of them."""

from __future__ import annotations

LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
)
"""Variables of torchrun, mpirun and srun: number of the process, of all processes, and of it on its machine."""
ENDS_ALL = ("TORCHELASTIC_RUN_ID", LAUNCHERS[1][0])
"""Set by those that end all processes when one ends with another code than 0: torchrun and mpirun."""
