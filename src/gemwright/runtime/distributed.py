"""Several processes that compute together, of which the first writes the files of all.

A launcher starts the same command on every machine. The tasks of a Slurm job and the pods of a TPU slice or several on
GKE join each other; any other launcher sets `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`.
"""

import os
from collections.abc import Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import jax
import numpy as np

from gemwright.errors import GemwrightError

COUNT, INDEX, ADDRESS = "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_COORDINATOR_ADDRESS"
"""Environment variables of a launcher that JAX does not know."""
joined = False
"""Whether this process has joined others."""


def join() -> None:
    """Join the processes that the environment names, if it does; call it before JAX is used.

    Raises:
        GemwrightError: The variables are not valid, or the other processes cannot be reached.
    """
    global joined
    if joined:
        return
    try:
        found = find_launcher()
        if found is None:
            return
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(**found)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise GemwrightError(f"The processes cannot join each other ({reason}); correct the launcher.") from error
    joined = True


def find_launcher() -> dict[str, Any] | None:
    """Return the arguments of `jax.distributed.initialize` for the launcher of this process; None if it is alone.

    Raises:
        ValueError: Variables are missing or no numbers.
    """
    given = os.environ
    if any(name in given for name in (ADDRESS, COUNT, INDEX)):
        if not all(name in given for name in (ADDRESS, COUNT, INDEX)):
            raise ValueError(f"{ADDRESS}, {COUNT} and {INDEX} must be set together")
        count, index = int(given[COUNT]), int(given[INDEX])
        return {"num_processes": count, "process_id": index, "cluster_detection_method": "deactivate"}
    if int(given.get("SLURM_NTASKS", 1)) > 1:
        # JAX gives each task of a node one device; a task that is alone on its node takes all.
        is_alone = given["SLURM_NTASKS"] == given.get("SLURM_STEP_NUM_NODES")
        return {"local_device_ids": ()} if is_alone and "JAX_LOCAL_DEVICE_IDS" not in given else {}
    hosts = given.get("TPU_WORKER_HOSTNAMES", "").count(",") + 1
    if hosts * int(given.get("MEGASCALE_NUM_SLICES", 1)) > 1:
        return {}
    return None


def is_first() -> bool:
    """Return whether this process writes files."""
    return jax.process_index() == 0


def largest(number: int) -> int:
    """Return the largest of the numbers that the processes give."""
    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


@contextmanager
def in_first(context: AbstractContextManager[Any]) -> Generator[None]:
    """Enter a context in the first process; the others enter the `with` block when it has, and fail if it fails.

    Raises:
        GemwrightError: The first process could not enter the context.
    """
    if not is_first():
        if largest(0):
            raise GemwrightError("The first process cannot begin; its message says why.")
        yield
        return
    with ExitStack() as stack:
        try:
            stack.enter_context(context)
        except BaseException:
            largest(1)
            raise
        largest(0)
        yield


@contextmanager
def noticing_loss(remedy: str) -> Generator[None]:
    """Raise one sentence if a computation fails since another process is gone.

    Args:
        remedy: What to do then.

    Raises:
        GemwrightError: Another process is gone.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # JAX raises both, by the place of the call
        if jax.process_count() == 1 or not any(word in str(error) for word in _LOSSES):
            raise
        raise GemwrightError(f"Another process of the run has ended; {remedy}.") from error


_LOSSES = ("Gloo", "UNAVAILABLE", "Connection", "heartbeat", "NCCL")
"""Words of errors of a computation that waits for a process that is gone."""


def gather(tree: Any) -> Any:
    """Return a tree with its arrays whole in every process."""
    if jax.process_count() == 1:
        return tree
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)
