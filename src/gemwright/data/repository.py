"""The order of the files of a repository: what a file imports comes before it, and a test beside what it tests.

CodeGemma (arXiv:2406.11409) packs the files of a repository so. It leaves open how many lines are searched for imports
and how edges are weighted: here it is `IMPORT_LINES`, and the number of names that an import takes.
"""

import ast
import graphlib
import heapq
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple, TypeAlias

from gemwright.data.python_code import find_statements

IMPORT_LINES = 200
"""Number of lines of a file that are searched for imports."""
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*["<]([^">\n]+)[">]', re.MULTILINE)
_C = (".c", ".h", ".cc", ".cpp", ".cxx", ".hh", ".hpp", ".hxx", ".cu", ".cuh", ".m", ".mm")
_TEST = re.compile(r"(?:tests?_(?P<b>.+)|(?P<a>.+?)[_.](?:tests?|spec)|Tests?(?P<d>[A-Z].*)|(?P<c>.+?)Tests?)")
"""The name of a test without its suffix."""
Graph: TypeAlias = Mapping[str, Mapping[str, int]]
"""The files that each file imports, with the weight of the import."""


class Import(NamedTuple):
    """An import of a file.

    Attributes:
        targets: Paths that it may mean, the likeliest first, without a suffix if it is a module of Python.
        weight: Number of names that it takes.
        exact: Whether a target is a whole path from the root of the repository.
    """

    targets: tuple[str, ...]
    weight: int
    exact: bool = False


def order_files(files: Mapping[str, str]) -> list[str]:
    """Return the paths of a repository in the order in which its files are packed.

    Every path is returned once. What a file imports comes before it, unless they import each other; then the weaker
    imports of a cycle do not count. Next comes always the file that is nearest to those before, by imports, and of
    several the first by name. A test follows the file that it tests as soon as the rest of what it imports is there.
    Files without imports come last, by name.

    Args:
        files: The texts by path, with slashes.
    """
    graph = break_cycles(make_graph(files))
    tests = find_tests(files)
    linked = {path for path, needs in graph.items() if needs} | {path for needs in graph.values() for path in needs}
    ordered = _linearize({path: graph[path] for path in sorted(linked)}, tests)
    of_test = {test: path for path, found in tests.items() for test in found}
    rest = [path for path in sorted(files) if path not in linked]
    ordered += [path for path in rest if path not in of_test]
    place = {path: [path] for path in ordered}
    for test in rest:
        if test in of_test:
            place[_root(test, of_test)].append(test)
    return [path for first in ordered for path in place[first]]


def _root(test: str, of_test: Mapping[str, str]) -> str:
    """Return what a test tests, which may be the name of another test."""
    while test in of_test:
        test = of_test[test]
    return test


def make_graph(files: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Return the imports of each file, resolved to paths of the repository."""
    index = _index(files)
    graph: dict[str, dict[str, int]] = {}
    for path in sorted(files):
        needs = graph.setdefault(path, {})
        for found in find_imports(path, files[path]):
            target = _resolve(found, path, index)
            if target is not None and target != path:
                needs[target] = needs.get(target, 0) + found.weight
    return graph


def find_imports(path: str, text: str) -> list[Import]:
    """Return the imports in the first lines of a file of Python, or includes of C and its relatives."""
    suffix = PurePosixPath(path).suffix
    if suffix in (".py", ".pyi"):
        return list(_python_imports(path, text))
    if suffix not in _C:
        return []
    first = "\n".join(text.split("\n", IMPORT_LINES)[:IMPORT_LINES])
    folder = PurePosixPath(path).parent
    return [
        Import((normal, name) if (normal := _normalize(folder / name)) else (name,), 1)
        for name in _INCLUDE.findall(first)
    ]


def _normalize(path: PurePosixPath) -> str | None:
    """Return a path without `..`; None if it leaves the repository."""
    parts: list[str] = []
    for part in path.parts:
        if part == "..":
            if not parts:
                return None
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def _python_imports(path: str, text: str) -> Iterator[Import]:
    folder = PurePosixPath(path).parent.parts
    for node in find_statements(text):
        if isinstance(node, ast.Import) and node.lineno <= IMPORT_LINES:
            for alias in node.names:
                yield Import((alias.name.replace(".", "/"),), 1)
        elif isinstance(node, ast.ImportFrom) and node.lineno <= IMPORT_LINES:
            if node.level > len(folder) + 1:
                continue
            base = folder[: len(folder) + 1 - node.level] if node.level else ()
            module = [*base, *(node.module or "").split(".")] if node.module else [*base]
            for alias in node.names:  # a name may be a module, too
                targets = ("/".join([*module, alias.name]), "/".join(module))
                yield Import(tuple(target for target in targets if target), 1, exact=bool(node.level))


def _index(files: Iterable[str]) -> dict[str, list[str]]:
    """Return the paths by each of the names that an import may give them, without the suffix of a module."""
    index: dict[str, list[str]] = {}
    for path in sorted(files):
        pure = PurePosixPath(path)
        name = str(pure.with_suffix("")) if pure.suffix in (".py", ".pyi") else path
        parts = name.removesuffix("/__init__").split("/")
        for first in range(len(parts)):
            index.setdefault("/".join(parts[first:]), []).append(path)
    return index


def _resolve(found: Import, path: str, index: Mapping[str, list[str]]) -> str | None:
    """Return the path that an import means: one that ends with it, or else one that it ends with."""
    for target in found.targets:
        paths = [one for one in index.get(target, []) if not found.exact or _is_whole(one, target)]
        if paths:
            return min(paths, key=lambda one: (-_common(one, path), one))
    depth = 0 if found.exact else max(target.count("/") for target in found.targets)
    for dropped in range(1, depth + 1):  # the folder of the repository may be that of the package
        for suffix in ("/".join(target.split("/")[dropped:]) for target in found.targets):
            if whole := [one for one in index.get(suffix, []) if _is_whole(one, suffix)]:
                return whole[0]
    return None


def _is_whole(path: str, name: str) -> bool:
    """Return whether a name is a whole path from the root of the repository."""
    return path in (name, f"{name}.py", f"{name}.pyi", f"{name}/__init__.py", f"{name}/__init__.pyi")


def _common(first: str, second: str) -> int:
    """Return the number of folders that two paths have in common."""
    pairs = zip(first.split("/")[:-1], second.split("/")[:-1], strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(first.count("/"), second.count("/")))


def break_cycles(graph: Graph) -> dict[str, dict[str, int]]:
    """Return a graph without cycles: of each, the weakest import is dropped, and of several the last by name."""
    acyclic = {path: dict(needs) for path, needs in graph.items()}
    while (cycle := _find_cycle(acyclic)) is not None:
        edges = list(zip(cycle[1:], cycle[:-1], strict=True))  # graphlib lists what is needed first
        path, need = max(edges, key=lambda edge: (-acyclic[edge[0]][edge[1]], edge))
        del acyclic[path][need]
    return acyclic


def _find_cycle(graph: Graph) -> list[str] | None:
    try:
        graphlib.TopologicalSorter({path: sorted(needs) for path, needs in graph.items()}).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None


def find_tests(paths: Iterable[str]) -> dict[str, list[str]]:
    """Return the tests of each file by its path: those of its name with test in it, in the nearest folder."""
    known = sorted(paths)
    by_name: dict[str, list[str]] = {}
    for path in known:
        by_name.setdefault(PurePosixPath(path).name, []).append(path)
    found: dict[str, list[str]] = {}
    for path in known:
        pure = PurePosixPath(path)
        match = _TEST.fullmatch(pure.stem)
        if match is None:
            continue
        name = next(group for group in match.groups() if group)
        tested = [one for one in by_name.get(name + pure.suffix, []) if one != path]
        if tested:
            found.setdefault(min(tested, key=lambda one: (-_common(one, path), one)), []).append(path)
    return found


def _linearize(graph: Graph, tests: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the nodes of a graph without cycles, what each needs before it; see `order_files`."""
    users: dict[str, list[str]] = {path: [] for path in graph}
    for path, needs in graph.items():
        for need in needs:
            users[need].append(path)
    around = {path: sorted({*graph[path], *users[path]}) for path in graph}
    missing = {path: len(needs) for path, needs in graph.items()}
    far = len(graph)
    distance = dict.fromkeys(graph, far)
    ready = [(far, path) for path, count in sorted(missing.items()) if not count]
    heapq.heapify(ready)
    ordered: dict[str, None] = {}

    def place(path: str) -> None:
        ordered[path] = None
        for user in users[path]:
            missing[user] -= 1
            if not missing[user]:
                heapq.heappush(ready, (distance[user], user))
        for near in _approach(path, around, distance):
            if not missing[near] and near not in ordered:
                heapq.heappush(ready, (distance[near], near))
        for test in tests.get(path, ()):
            if test in missing and not missing[test] and test not in ordered:
                place(test)

    while ready:
        _, path = heapq.heappop(ready)
        if path not in ordered:  # an earlier entry may be nearer
            place(path)
    return list(ordered)


def _approach(path: str, around: Mapping[str, Sequence[str]], distance: dict[str, int]) -> Iterator[str]:
    """Update the distance of each node to the nearest that is placed, and yield those that came nearer."""
    distance[path] = 0
    queue = deque([path])
    while queue:
        here = queue.popleft()
        for near in around[here]:
            if distance[here] + 1 < distance[near]:
                distance[near] = distance[here] + 1
                queue.append(near)
                yield near
