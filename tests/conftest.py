"""What all tests share. Under test, the functions that compute check the types and shapes that they state."""

import signal
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import jaxtyping
import pytest

from gemwright import tree

COMPUTING = ["gemwright.ops", "gemwright.weights", "gemwright.model", "gemwright.generate"]

# Functions are checked and pytree nodes are not: a transformation puts shapes or placeholders in their fields.
# Both lines must come before the modules are imported anywhere. An int may stand for a float, as in pyright.
_node = tree.node
tree.node = lambda cls: typing.no_type_check(_node(cls))
jaxtyping.install_import_hook(COMPUTING, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

# The same examples in every run: a change fails for what it changed. To look further: --hypothesis-profile=default.
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile("repeatable")

# A shell's background job ignores Ctrl-C, and so would the programs that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def demo_gguf() -> Path:
    """The real Gemma 3 270M that comes with the `demo` extra."""
    from gemwright.checkpoint.locate import locate

    return locate("gemma-3-270m", may_download=False)


@pytest.fixture(scope="session")
def demo(demo_gguf: Path) -> Any:
    """The same as a `gemwright.Model` in float32: a gigabyte, which the tests of several folders share."""
    import gemwright

    return gemwright.load(demo_gguf, dtype="float32")


@pytest.fixture(scope="session")
def demo_metadata(demo_gguf: Path) -> dict[str, Any]:
    from gemwright.checkpoint.files.gguf import open_gguf

    return dict(open_gguf(demo_gguf).metadata)


@pytest.fixture(scope="session")
def demo_oracle(demo_metadata: dict[str, Any]) -> Any:
    """transformers' own conversion of the GGUF's vocabulary: other code for the pieces, the merges and the BPE."""
    from transformers.integrations.gguf import convert_gguf_tokenizer

    fields = {key: list(demo_metadata[f"tokenizer.ggml.{key}"]) for key in ("tokens", "scores", "token_type")}
    return convert_gguf_tokenizer("gemma3", {"tokenizer_type": "llama", **fields})[0]


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """XLA's own passes as ever, but LLVM's off: for many tiny programs, which take longer to compile than to run."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The tests and the processes that they start share a cache folder, which is empty at first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
