"""The wheel that `make wheel` builds, installed into a bare environment."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.documents import ROOT

pytestmark = [pytest.mark.peer, pytest.mark.skipif(sys.platform != "linux", reason="manylinux wheels are for Linux")]
WHEELS = sorted((ROOT / "build" / "wheel" / "repaired").glob("*.whl"))
DESCRIBE = """
import json, gemwright_native as native
print(json.dumps({"available": native.available(), "file": native.__file__}))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with the wheel, its dependencies and what its tests need."""
    assert len(WHEELS) == 1, "run `make wheel`"
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=True)
    install = [folder / "bin" / "pip", "install", "-q", "--no-compile", WHEELS[0], "pytest>=9,<10", "gguf>=0.19,<0.20"]
    subprocess.run(install, check=True, env=_environment())
    return folder / "bin" / "python"


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def test_wheel_is_for_many_systems_and_any_python():
    assert "-py3-none-manylinux" in WHEELS[0].name
    names = zipfile.ZipFile(WHEELS[0]).namelist()
    assert [name for name in names if name.endswith(".so")]
    assert not [name for name in names if name.startswith(("tests", "bench", "docs")) or name.endswith(".cc")]


def test_bare_environment_has_the_kernels(python: Path, tmp_path: Path):
    result = subprocess.run([python, "-c", DESCRIBE], cwd=tmp_path, check=True, capture_output=True, env=_environment())
    found = json.loads(result.stdout)
    assert found["available"] is True
    assert Path(found["file"]).is_relative_to(python.parents[1])


def test_kernels_pass_their_tests(python: Path, tmp_path: Path):
    tests = [str(ROOT / "native" / "tests" / name) for name in ("test_api.py", "test_matmul.py", "test_attention.py")]
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, *tests]
    subprocess.run(command, cwd=tmp_path, check=True, env=_environment())
