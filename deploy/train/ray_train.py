"""Train on the machines of a Ray cluster: one process of `gemwright train` on each.

pip install '.[train]' ray
python deploy/train/ray_train.py --machines 2 --resources '{"GPU": 8}' run.toml

The folder in which this runs, with the data and the run, is shared by the machines. If a machine is lost, all processes
are started again, and the run continues after its last checkpoint.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import ray
from ray.util import get_node_ip_address
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

RESTARTS = 20
"""Number of times that a run is started again."""


def main() -> None:
    """Start a run, and start it again if a machine is lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machines", type=int, required=True)
    parser.add_argument("--resources", type=json.loads, default={"CPU": 1}, help='of a machine, as {"GPU": 8}')
    parser.add_argument("--strategy", default="STRICT_SPREAD", help="PACK lets several processes share a machine")
    options, arguments = parser.parse_known_args()
    ray.init()
    for left in range(RESTARTS, -1, -1):
        try:
            return run(options.machines, options.resources, options.strategy, arguments)
        except ray.exceptions.RayError as error:
            print(f"{str(error).splitlines()[-1]}; {left} restarts are left.", file=sys.stderr)  # noqa: T201
    sys.exit(2)


def run(machines: int, resources: dict[str, float], strategy: str, arguments: list[str]) -> None:
    """Train once, with a process on each machine.

    Raises:
        RayError: A process failed, or its machine was lost.
    """
    bundle = {"CPU": 1, **resources}
    group = placement_group([bundle] * machines, strategy=strategy)
    try:
        ray.get(group.ready())
        options = {"num_cpus": bundle["CPU"], "num_gpus": bundle.get("GPU", 0), "max_retries": 0}
        options["resources"] = {name: count for name, count in bundle.items() if name not in ("CPU", "GPU")}

        def start(function: Any, index: int, *given: Any) -> Any:
            place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
            return ray.remote(function).options(scheduling_strategy=place, **options).remote(*given)

        address = ray.get(start(find_address, 0))
        folder = str(Path.cwd())
        waiting = [start(train, index, address, machines, index, folder, arguments) for index in range(machines)]
        while waiting:  # in the order in which they end, so that the first failure is seen
            done, waiting = ray.wait(waiting)
            ray.get(done)
    finally:
        remove_placement_group(group)  # ends the other processes


def find_address() -> str:
    """Return an address of this machine with a free port."""
    with socket.socket() as found:
        found.bind(("", 0))
        return f"{get_node_ip_address()}:{found.getsockname()[1]}"


def train(address: str, count: int, index: int, folder: str, arguments: list[str]) -> None:
    """Run one process to its end."""
    variables = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)}
    command = [sys.executable, "-m", "gemwright", "train", *arguments]
    if setpriv := shutil.which("setpriv"):  # ends the process with its task, even if that is killed
        command = [setpriv, "--pdeathsig", "KILL", *command]
    subprocess.run(command, cwd=folder, env={**os.environ, **variables}, check=True)


if __name__ == "__main__":
    main()
