"""Check the files that start training on many machines: against their schemas, and by running them on loopback."""

import json
import math
import os
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from gemwright import sharding
from gemwright.cli.app import app
from tests.documents import ROOT
from tests.tiny.hf import write_model
from tests.train.tiny_run import write_data

yaml = pytest.importorskip("yaml")
FOLDER = ROOT / "deploy" / "train"
JOBSETS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("jobset-*.yaml"))}
OPTIONS = {
    name
    for parameter in get_command(app).commands["train"].params  # pyright: ignore[reportAttributeAccessIssue]
    for name in parameter.opts
}
STEPS = 4
TIMEOUT = 300
# Stand-ins for Slurm's commands: srun starts two tasks, as on two nodes.
SRUN = """#!/bin/bash
shift  # --kill-on-bad-exit=1
export SLURM_NTASKS=2 SLURM_STEP_NUM_NODES=2 SLURM_STEP_NODELIST=localhost SLURM_LOCALID=0
SLURM_PROCID=0 "$@" & first=$!
SLURM_PROCID=1 "$@" & second=$!
wait "$first"; code=$?
wait "$second"; other=$?
exit $((code > other ? code : other))
"""
SCONTROL = '#!/bin/bash\necho "$@" >> "$REQUEUED"\n'


def replicated(jobset: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the one replicated job of a JobSet, the Job's specification and the container."""
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    return job, spec, spec["template"]["spec"]["containers"][0]


@pytest.mark.peer
@pytest.mark.parametrize("name", JOBSETS)
def test_kubernetes_jobset_schemas(name: str):
    """No field of the JobSet, its Job or its pod is unknown, missing or mistyped."""
    models = pytest.importorskip("kubeflow_trainer_api.models")
    validator = pytest.importorskip("kubernetes_validate")
    model = models.JobsetV1alpha2JobSet

    def check(jobset: dict[str, Any]) -> None:
        assert model.from_dict(jobset).to_dict() == jobset  # a field that is not known is left out
        _, spec, _ = replicated(jobset)
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, "spec": spec}
        validator.validate(job, "1.37", strict=True)

    check(JOBSETS[name])
    for path, value in {("failurePolicy", "maxRestart"): 1, ("network", "enableDNS"): True}.items():
        broken = json.loads(json.dumps(JOBSETS[name]))
        broken["spec"].setdefault(path[0], {})[path[1]] = value
        with pytest.raises(AssertionError):
            check(broken)
    broken = json.loads(json.dumps(JOBSETS[name]))
    replicated(broken)[1]["template"]["spec"]["containers"][0]["arg"] = ["train"]
    with pytest.raises((AssertionError, validator.ValidationError)):
        check(broken)


@pytest.mark.parametrize("name", JOBSETS)
def test_a_jobset_starts_as_many_processes_as_the_mesh_needs(name: str):
    job, spec, container = replicated(JOBSETS[name])
    assert spec["parallelism"] == spec["completions"]
    assert (spec["completionMode"], spec["backoffLimit"]) == ("Indexed", 0)  # a failure restarts all
    (limit,) = container["resources"]["limits"].items()
    chips = job["replicas"] * spec["parallelism"] * limit[1]
    command, _, *words = container["args"]
    options = dict(word.split("=", 1) for word in words)
    assert command == "train"
    assert options.keys() <= OPTIONS
    sizes = sharding.parse_mesh(options["--mesh"])
    assert math.prod(sizes.values()) == chips
    assert sizes.get("slice", 1) == job["replicas"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["template"]["spec"]["volumes"]}


def test_a_slice_has_the_machines_of_its_topology():
    job, spec, container = replicated(JOBSETS["jobset-tpu"])
    topology = spec["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = math.prod(map(int, topology.split("x")))
    assert chips == spec["parallelism"] * container["resources"]["limits"]["google.com/tpu"]
    assert job["name"] == "slice"


def test_pods_with_gpus_find_the_first():
    job, spec, container = replicated(JOBSETS["jobset-gpu"])
    variables = {item["name"]: item for item in container["env"]}
    name = JOBSETS["jobset-gpu"]["metadata"]["name"]
    host, _, port = variables["JAX_COORDINATOR_ADDRESS"]["value"].partition(":")
    assert host == f"{name}-{job['name']}-0-0.{name}"  # JobSet, Job, pod; the service has the name of the JobSet
    assert int(port) == container["ports"][0]["containerPort"]
    assert int(variables["JAX_NUM_PROCESSES"]["value"]) == spec["parallelism"]
    field = variables["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert field == "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def test_a_shell_accepts_the_slurm_script():
    path = FOLDER / "slurm.sbatch"
    subprocess.run(["bash", "-n", path], check=True)
    options = [line.split()[1] for line in path.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"--ntasks-per-node=1", "--requeue", "--signal=TERM@300"} <= set(options)
    program = next(line for line in path.read_text().splitlines() if line.startswith("srun"))
    assert shlex.split(program)[1:] == ["--kill-on-bad-exit=1", "gemwright", "train", "$@"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with the description of a run of a tiny model."""
    write_model(tmp_path / "model")
    write_data(tmp_path / "train.jsonl")
    description = {
        "model": "model",
        "out": "run",
        "recipe": {"method": "full", "length": 32, "batch_size": 4, "steps": STEPS},
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in description.items() if not isinstance(value, dict)]
    lines += ["[recipe]", *(f"{key} = {json.dumps(value)}" for key, value in description["recipe"].items())]  # pyright: ignore
    lines += ["[[data]]", 'path = "train.jsonl"']
    text = "\n".join(lines)
    assert tomllib.loads(text)
    (tmp_path / "run.toml").write_text(text)
    return tmp_path


def environment(**variables: str) -> dict[str, str]:
    scripts = Path(sys.executable).parent
    given = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", **variables}
    return {**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}", **given}


def assert_trained(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert list((run / "run").glob("**/*.safetensors"))


@pytest.mark.slow
def test_slurm_runs_two_tasks_and_queues_a_failed_job_again(run: Path):
    folder, requeued = run / "bin", run / "requeued"
    folder.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    given = environment(SLURM_JOB_ID="7", REQUEUED=str(requeued))
    given["PATH"] = f"{folder}:{given['PATH']}"

    def submit(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", FOLDER / "slurm.sbatch", *arguments]
        return subprocess.run(command, cwd=run, env=given, capture_output=True, text=True, timeout=TIMEOUT, check=False)

    done = submit("run.toml", "--mesh", "fsdp=2")
    assert done.returncode == 0, done.stderr
    assert not requeued.exists()
    assert_trained(run)
    assert submit("absent.toml").returncode == 2
    assert requeued.read_text() == "requeue 7\n"
    given["SLURM_RESTART_COUNT"] = "20"
    assert submit("absent.toml").returncode == 2
    assert requeued.read_text() == "requeue 7\n"


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")  # of Ray and its dependencies
def test_ray_trains_in_two_processes(run: Path):
    """A cluster of this machine, in which both processes have a place."""
    pytest.importorskip("ray")
    options = ["--machines", "2", "--strategy", "PACK", "run.toml", "--mesh", "fsdp=2"]
    command = [sys.executable, FOLDER / "ray_train.py", *options]
    done = subprocess.run(
        command, cwd=run, env=environment(), capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert_trained(run)
