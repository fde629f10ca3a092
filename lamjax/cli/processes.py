"""Several processes that work together: how a command joins them."""

import re

import jax


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Join the processes of --coordinator: HOST:PORT, or auto under SLURM or MPI; nothing happens without it.

    Raises ValueError for options that do not fit.
    """
    if coordinator is None:
        return
    if coordinator == "auto":
        jax.distributed.initialize()
        return
    if not re.fullmatch(r".+:\d+", coordinator):
        raise ValueError(f"--coordinator {coordinator}: give HOST:PORT of the first process, or auto (SLURM, MPI).")
    if processes is None or process is None:
        raise ValueError(
            f"--coordinator {coordinator} needs --processes (how many there are) and --process (which this is, from 0)."
        )
    jax.distributed.initialize(coordinator, processes, process)
