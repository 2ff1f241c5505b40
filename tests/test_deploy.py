"""Check the files of deploy/: against the schemas of Kubernetes, and for what the server promises."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from gemwright.cli.app import app
from tests.documents import ROOT
from tests.tiny.gguf import write_tiny_gguf

yaml = pytest.importorskip("yaml")
FOLDER = ROOT / "deploy"
FILES = sorted((FOLDER / "kubernetes").glob("*.yaml"))
KUBERNETES = ("1.29", "1.33", "1.37")
COMMANDS = get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
needs_server = pytest.mark.skipif("serve" not in COMMANDS, reason="gemwright serve is not in this version")
# Fields of KServe's PredictorSpec that are not those of a PodSpec (kserve.V1beta1PredictorSpec), as far as used.
PREDICTOR = {"minReplicas", "maxReplicas", "timeout"}


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def find(kind: str) -> dict[str, Any]:
    (found,) = [item for path in FILES for item in documents(path) if item["kind"] == kind]
    return found


DEPLOYMENT = find("Deployment")["spec"]["template"]["spec"]
KSERVE = documents(FOLDER / "kserve.yaml")[0]["spec"]["predictor"]
PODS = {"kubernetes": DEPLOYMENT, "kserve": KSERVE}


@pytest.mark.peer
@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_schemas(version: str):
    """The files, and the pod of KServe's predictor, have no unknown, missing or mistyped field."""
    validator = pytest.importorskip("kubernetes_validate")
    items = [item for path in FILES for item in documents(path)]
    pod = {name: value for name, value in KSERVE.items() if name not in PREDICTOR}
    items.append({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "kserve"}, "spec": pod})
    assert len(items) == 5
    for item in items:
        validator.validate(item, version, strict=True)
    broken = json.loads(json.dumps(items[-1]))
    broken["spec"]["containers"][0]["livenessProb"] = {}
    with pytest.raises(validator.ValidationError):
        validator.validate(broken, version, strict=True)


@pytest.mark.parametrize("kind", PODS)
def test_a_pod_drains_before_it_is_killed(kind: str):
    container = PODS[kind]["containers"][0]
    options = dict(word.removeprefix("--").split("=") for word in container["args"][1:])
    before = container["lifecycle"]["preStop"]["exec"]["command"]
    assert before[0] == "sleep"
    assert PODS[kind]["terminationGracePeriodSeconds"] >= int(before[1]) + int(options["shutdown-timeout"]) + 10
    assert container["args"][0] == "serve"
    assert options["host"] == "0.0.0.0"
    assert int(options["port"]) == container["ports"][0]["containerPort"]


@pytest.mark.parametrize("kind", PODS)
def test_a_pod_has_no_rights(kind: str):
    pod, container = PODS[kind], PODS[kind]["containers"][0]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] > 0
    assert not pod["automountServiceAccountToken"]
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"]
    assert not security["allowPrivilegeEscalation"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted == {"cache": "/cache", "tmp": "/tmp"}
    assert {volume["name"] for volume in pod["volumes"]} == mounted.keys()
    assert "secretKeyRef" in next(item for item in container["env"] if item["name"] == "GEMWRIGHT_API_KEY")["valueFrom"]


def test_probes():
    """Liveness does not wait for the model; readiness does, and one refusal stops new requests."""
    container = DEPLOYMENT["containers"][0]
    assert container["startupProbe"]["httpGet"]["path"] == container["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["readinessProbe"]["failureThreshold"] == 1
    assert container["livenessProbe"]["failureThreshold"] * container["livenessProbe"]["periodSeconds"] >= 60
    probes = KSERVE["containers"][0]
    assert probes["livenessProbe"]["httpGet"] == {"path": "/v2/health/live", "port": 8080}
    assert probes["readinessProbe"]["httpGet"] == {"path": "/v2/health/ready", "port": 8080}


def test_objects_name_each_other():
    deployment, service, scaler = find("Deployment"), find("Service"), find("HorizontalPodAutoscaler")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["selector"] == labels
    assert find("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["ports"][0]["targetPort"] == DEPLOYMENT["containers"][0]["ports"][0]["name"]
    target = scaler["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
    assert "replicas" not in deployment["spec"]


def test_the_autoscaler_reads_the_queue():
    (metric,) = find("HorizontalPodAutoscaler")["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    (rule,) = documents(FOLDER / "prometheus-adapter.yaml")[0]["rules"]["custom"]
    assert rule["seriesQuery"].startswith(f"{name}{{")
    assert (rule["name"]["matches"], rule["name"]["as"]) == (f"^{name}$", name)
    if find_spec("gemwright.serve.metrics"):
        source = (ROOT / "src" / "gemwright" / "serve" / "metrics.py").read_text()
        assert f'"{name.removeprefix("gemwright_")}"' in source


@needs_server
def test_options_of_the_server_exist():
    words = [*DEPLOYMENT["containers"][0]["args"], *KSERVE["containers"][0]["args"]]
    words += re.findall(r'"(--[a-z-]+)"', (FOLDER / "ray_serve.py").read_text())
    known = {name for parameter in COMMANDS["serve"].params for name in parameter.opts}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} - {"--pdeathsig"} <= known


def instructions(path: Path) -> dict[str, list[str]]:
    """Return the arguments of each instruction of a Dockerfile, read by the parser of dockerfile-parse."""
    parser = pytest.importorskip("dockerfile_parse").DockerfileParser(path=str(path), cache_content=True)
    found: dict[str, list[str]] = {}
    for item in parser.structure:
        found.setdefault(item["instruction"], []).append(item["value"])
    found.pop("COMMENT", None)
    return found


def test_dockerfile():
    """Known instructions, sources that exist, no root, a cache outside the image, and the server in it."""
    found = instructions(ROOT / "Dockerfile")
    known = {
        "ARG",
        "CMD",
        "COPY",
        "ENTRYPOINT",
        "ENV",
        "EXPOSE",
        "FROM",
        "RUN",
        "STOPSIGNAL",
        "USER",
        "VOLUME",
        "WORKDIR",
    }
    assert found.keys() <= known
    for value in found["COPY"]:
        if not value.startswith("--from"):
            assert all((ROOT / source).exists() for source in value.split()[:-1]), value
    assert found["USER"] == ["1000"]
    assert found["VOLUME"] == ["/cache"]
    assert all(":" in image.split()[0] and "latest" not in image for image in found["FROM"])
    assert json.loads(found["ENTRYPOINT"][0]) == ["gemwright"]  # not by a shell, which would not pass SIGTERM on
    assert {"demo", "serve"} <= set(found["ARG"][0].partition("=")[2].split(","))


def test_vertex_upload():
    """A shell accepts the script, and its routes are those that the server reads from Vertex AI's variables."""
    path = FOLDER / "vertex_upload.sh"
    subprocess.run(["sh", "-n", path], check=True)
    assert os.access(path, os.X_OK)
    missing = subprocess.run(["sh", path], capture_output=True, text=True, check=False)
    assert (missing.returncode != 0, "Usage: PROJECT=" in missing.stderr) == (True, True)
    words = shlex.split(path.read_text().replace("$(", "( ").replace("\\\n", " "), comments=True)
    options = dict(word[2:].split("=", 1) for word in words if re.match(r"--container-[a-z-]+=", word))
    assert options["container-args"].split(",") == ["serve", "--model=$source", "--host=0.0.0.0"]
    assert options["container-health-route"].startswith("/")
    assert options["container-predict-route"].startswith("/")
    assert options["container-ports"] == "8080"
    assert json.loads(re.search(r"printf '(.*)'", path.read_text())[1])["instances"]  # pyright: ignore[reportOptionalSubscript]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


BODY = {"prompt": "the hen", "max_tokens": 32, "temperature": 0}


@needs_server
@pytest.mark.slow
def test_a_replica_passes_requests_and_streams_on(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    from starlette.applications import Starlette
    from starlette.routing import Route
    from starlette.testclient import TestClient

    monkeypatch.syspath_prepend(str(FOLDER))
    import ray_serve  # pyright: ignore[reportMissingImports]

    replica = ray_serve.Replica(str(tiny))
    methods = ["GET", "POST"]
    with TestClient(Starlette(routes=[Route("/{path:path}", replica.__call__, methods=methods)])) as client:
        whole = client.post("/v1/completions", json=BODY).json()["choices"][0]["text"]
        with client.stream("POST", "/v1/completions", json=BODY | {"stream": True}) as reply:
            assert reply.headers["content-type"].startswith("text/event-stream")
            events = [line.removeprefix("data: ") for line in reply.iter_lines() if line.startswith("data: ")]
        assert events[-1] == "[DONE]"
        assert "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1]) == whole
        assert client.get("/nonsense?a=b").status_code == 404
        replica._process.kill()
        replica._process.wait()
        with pytest.raises(RuntimeError, match="exit code -9"):
            replica.check_health()


@pytest.fixture
def ray_address(tiny: Path) -> Iterator[str]:
    """Two replicas under Ray Serve on loopback."""
    ray = pytest.importorskip("ray")
    from ray import serve

    sys.path.insert(0, str(FOLDER))
    from ray_serve import build  # pyright: ignore[reportMissingImports]

    paths = os.pathsep.join(filter(None, [str(FOLDER), str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": paths}})
    serve.start(http_options={"host": "127.0.0.1", "port": 8123})
    serve.run(build({"model": str(tiny), "replicas": "2"}))
    yield "http://127.0.0.1:8123"
    serve.shutdown()
    ray.shutdown()


def servers() -> list[int]:
    """Return the processes of `gemwright serve` under this one."""
    found = subprocess.run(["pgrep", "-f", "gemwright serve .*--shutdown-timeout"], capture_output=True, check=False)
    return [int(number) for number in found.stdout.split() if int(number) != os.getpid()]


@needs_server
@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")  # of Ray and its dependencies
def test_ray_replaces_a_killed_replica_under_load(ray_address: str):
    """Every reply is the whole greedy text; requests of the killed replica fail and are repeated, as clients do."""
    import httpx

    def ask(_: int) -> tuple[str, int]:
        for repeated in range(60):
            try:
                reply = httpx.post(f"{ray_address}/v1/completions", json=BODY, timeout=60)
                if reply.is_success:
                    return reply.json()["choices"][0]["text"], repeated
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        raise AssertionError("60 attempts failed")

    before = servers()
    assert len(before) == 2
    with ThreadPoolExecutor(8) as pool:
        asked = pool.map(ask, range(200))
        time.sleep(1)
        os.kill(before[0], signal.SIGKILL)
        replies = list(asked)
    assert len({text for text, _ in replies}) == 1
    assert sum(repeated > 0 for _, repeated in replies) < 40
    for _ in range(120):
        if len(servers()) == 2:
            break
        time.sleep(1)
    assert len(servers()) == 2
    assert before[0] not in servers()
