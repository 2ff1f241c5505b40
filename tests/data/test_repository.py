"""The order of the files of a repository."""

import itertools
from collections.abc import Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from gemwright.data.repository import break_cycles, find_tests, make_graph, order_files

NAMES = [f"{folder}{name}.py" for folder in ("", "pkg/", "pkg/sub/") for name in ("a", "b", "c", "test_a", "__init__")]
EDGES = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)), max_size=25)


def write_files(edges: list[tuple[str, str]]) -> dict[str, str]:
    """Return files of which the first of each pair imports the second, by its whole module."""
    files = dict.fromkeys(NAMES, "")
    for path, need in edges:
        files[path] += f"import {need.removesuffix('.py').replace('/', '.')}\n"
    return files


def reach(graph: Mapping[str, Mapping[str, int]], start: str) -> set[str]:
    """Return all that a file needs, also through others."""
    found, left = set[str](), [start]
    while left:
        for need in graph[left.pop()]:
            if need not in found:
                found.add(need)
                left.append(need)
    return found


@settings(max_examples=60, deadline=None)
@given(EDGES)
def test_every_file_once_and_what_it_imports_first(edges: list[tuple[str, str]]):
    files = write_files(edges)
    order = order_files(files)
    assert sorted(order) == sorted(files)
    graph, place = make_graph(files), {path: number for number, path in enumerate(order)}
    for path, needs in graph.items():
        for need in needs:
            if path not in reach(graph, need):  # they are in no cycle
                assert place[need] < place[path]
    assert order == order_files(dict(reversed(files.items())))


@settings(max_examples=60, deadline=None)
@given(EDGES)
def test_cycles_are_broken_at_the_weakest_imports(edges: list[tuple[str, str]]):
    graph = make_graph(write_files(edges))
    acyclic = break_cycles(graph)
    assert not any(path in reach(acyclic, path) for path in acyclic)
    for path, needs in graph.items():
        for need in needs.keys() - acyclic[path].keys():
            assert path in reach(graph, need)
    weights = {"a.py": {"b.py": 3}, "b.py": {"c.py": 1}, "c.py": {"a.py": 2}}
    assert break_cycles(weights) == {"a.py": {"b.py": 3}, "b.py": {}, "c.py": {"a.py": 2}}


def test_imports_are_resolved():
    files = {
        "src/pkg/__init__.py": "from . import core\n",
        "src/pkg/core.py": "import os, sys\nfrom pkg.tools import x, y\nfrom .data.load import z\n",
        "src/pkg/tools.py": "import json as core\n",
        "src/pkg/data/__init__.py": "",
        "src/pkg/data/load.py": "from .. import tools\nfrom ... import core\nfrom ....... import far\n",
        "other/tools.py": "def f():\n    from pkg import core\n",
        "broken.py": "import pkg.core\nx = (\n",
        "late.py": "\n" * 300 + "import pkg.core\n",
    }
    assert {path: dict(needs) for path, needs in make_graph(files).items()} == {
        "src/pkg/__init__.py": {"src/pkg/core.py": 1},
        "src/pkg/core.py": {"src/pkg/tools.py": 2, "src/pkg/data/load.py": 1},
        "src/pkg/tools.py": {},
        "src/pkg/data/__init__.py": {},
        "src/pkg/data/load.py": {"src/pkg/tools.py": 1},
        "other/tools.py": {"src/pkg/core.py": 1},
        "broken.py": {},
        "late.py": {},
    }


def test_the_folder_may_be_the_package():
    files = {
        "b.py": "",
        "a.py": "from pkg.b import a\n",
        "sub/c.py": "import pkg.a\nimport pkg.sub.d\n",
        "sub/d.py": "",
    }
    graph = make_graph(files)
    assert {path: set(needs) for path, needs in graph.items()} == {
        "a.py": {"b.py"},
        "b.py": set(),
        "sub/c.py": {"a.py", "sub/d.py"},
        "sub/d.py": set(),
    }


def test_includes_are_resolved():
    files = {
        "src/main.c": '#include "util.h"\n#include <stdio.h>\n  # include "../include/api.h"\n#include "../../out.h"\n',
        "src/util.h": "#include <proj/include/api.h>\n",
        "include/api.h": "",
        "tools/util.h": "",
    }
    assert {path: set(needs) for path, needs in make_graph(files).items()} == {
        "src/main.c": {"src/util.h", "include/api.h"},
        "src/util.h": {"include/api.h"},
        "include/api.h": set(),
        "tools/util.h": set(),
    }
    assert order_files(files) == ["include/api.h", "src/util.h", "src/main.c", "tools/util.h"]


def test_tests_are_beside_what_they_test():
    names = ["lib/foo.py", "lib/bar.py", "tests/test_foo.py", "tests/bar_test.py", "Thing.java", "TestThing.java"]
    names += ["ThingTest.java", "web/app.js", "web/app.test.js", "contest.py", "test_.py", "tests/test_unknown.py"]
    assert find_tests(names) == {
        "lib/foo.py": ["tests/test_foo.py"],
        "lib/bar.py": ["tests/bar_test.py"],
        "Thing.java": ["TestThing.java", "ThingTest.java"],
        "web/app.js": ["web/app.test.js"],
    }
    order = order_files(dict.fromkeys(names, ""))
    pairs = set(itertools.pairwise(order))
    assert {("lib/foo.py", "tests/test_foo.py"), ("lib/bar.py", "tests/bar_test.py")} <= pairs
    assert {
        ("Thing.java", "TestThing.java"),
        ("TestThing.java", "ThingTest.java"),
        ("web/app.js", "web/app.test.js"),
    } <= pairs


def test_a_test_follows_when_all_that_it_imports_is_there():
    files = {
        "foo.py": "",
        "tests/test_foo.py": "import foo\nimport help\n",
        "help.py": "import foo\n",
        "also.py": "import foo\n",
    }
    assert order_files(files) == ["foo.py", "also.py", "help.py", "tests/test_foo.py"]


def test_the_nearest_file_comes_next():
    """Two chains: the second begins only when the first is at its end."""
    files = {f"a{n}.py": f"import a{n - 1}\n" if n else "" for n in range(4)}
    files |= {f"b{n}.py": f"import b{n - 1}\n" if n else "" for n in range(4)}
    assert order_files(files) == [f"{name}{n}.py" for name in "ab" for n in range(4)]
