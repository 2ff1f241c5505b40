"""What all tests share. Under test, the functions that compute check the types and shapes that they state."""

import typing
from pathlib import Path

import jaxtyping
import pytest

from gemwright import tree

COMPUTING = ["gemwright.ops", "gemwright.weights", "gemwright.model", "gemwright.generate"]

# Functions are checked and pytree nodes are not: a transformation puts shapes or placeholders in their fields.
# Both lines must come before the modules are imported anywhere. An int may stand for a float, as in pyright.
_node = tree.node
tree.node = lambda cls: typing.no_type_check(_node(cls))
jaxtyping.install_import_hook(COMPUTING, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")


@pytest.fixture(scope="session")
def demo_gguf() -> Path:
    """The real Gemma 3 270M that comes with the `demo` extra."""
    from gemwright.checkpoint.locate import locate

    return locate("gemma-3-270m", may_download=False)
