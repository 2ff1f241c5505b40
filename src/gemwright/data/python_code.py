"""The statements of Python source code, which is parsed and never run."""

import ast
import warnings
from collections.abc import Iterator

MAX_PARSED = 1 << 20
"""Maximum number of characters of a file that is parsed."""


def find_statements(text: str) -> Iterator[ast.stmt]:
    """Yield the statements of a file, those inside others, too; none if it does not parse."""
    if len(text) > MAX_PARSED:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes and the like, which are the file's own
            module = ast.parse(text.encode())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    nodes: list[ast.AST] = list(reversed(module.body))
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.stmt):
            yield node
        blocks = (getattr(node, name, ()) for name in ("body", "handlers", "cases", "orelse", "finalbody"))
        nodes += reversed([inner for block in blocks for inner in block])
