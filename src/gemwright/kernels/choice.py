"""The choice of an operation's implementation: the jax.numpy reference, or a version for one platform.

A program may be lowered for another platform than the one that traces it, as `jax.export` does. So an operation with a
version for one platform is a JAX primitive, and its implementation is chosen when the primitive is lowered. Only that
one is traced: `jax.lax.platform_dependent` traces every branch, which takes 200 ms for each attention layer.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.typing import DTypeLike

from gemwright.errors import GemwrightError
from gemwright.kernels import native
from gemwright.typing import Array

Impl: TypeAlias = Literal["auto", "reference", "native", "pallas"]
"""`reference` is jax.numpy on any platform, `native` the C++ kernel on a CPU; `auto` takes the kernel if it can.

`pallas` is that of a TPU for attention without a cache, interpreted slowly on a CPU, and `auto` for the rest.
"""

_requested: Any = jax.make_user_context("auto")


def use(impl: Impl) -> AbstractContextManager[None]:
    """Return a context in which attention, the RG-LRU and the cross-entropy have this implementation.

    The request is part of the key of `jax.jit`'s caches. It has no effect on products with a `PackedTensor`, which have
    no other implementation: load a model with another `dtype` instead.
    """
    return _requested(impl)


def resolve(operation: str, obstacle: str | None) -> Impl:
    """Return the implementation of an operation: `auto` if the platform of the program decides.

    Args:
        operation: Its name, for the error.
        obstacle: The reason why the native kernel does not take these inputs; None if it does.

    Raises:
        GemwrightError: The native kernel is requested and cannot run.
    """
    requested: Impl = _requested.value
    if requested == "reference":
        return requested
    if requested == "pallas":
        requested = "auto"
    if obstacle is None and not native.usable():
        obstacle = "the C++ kernels are not installed"
    if obstacle is None:
        return requested
    if requested == "native":
        raise GemwrightError(f"{operation} cannot run natively: {obstacle}; use the implementation auto or reference.")
    return "reference"


def resolve_pallas(operation: str, obstacle: str | None) -> Impl:
    """Return the implementation of an operation that has one in Pallas and none in C++, as `resolve` does.

    Raises:
        GemwrightError: The Pallas kernel is requested and cannot run.
    """
    requested: Impl = _requested.value
    if requested == "pallas" and obstacle is not None:
        raise GemwrightError(f"{operation} cannot run in Pallas: {obstacle}; use the implementation auto or reference.")
    return "reference" if obstacle is not None or requested == "native" else requested


def describe_choices() -> dict[str, str]:
    """Return what `auto` chooses for each operation on JAX's default platform."""
    platform, kernels = jax.default_backend(), native.native_enabled()
    fast = f"native ({native.instruction_set()})" if kernels else "reference"
    return {
        "products with stored weights": fast if kernels else "panels decoded by XLA",
        "attention with a cache": fast,
        "attention without a cache": "splash (Pallas)" if platform == "tpu" else "reference",
        "RG-LRU": fast,
        "cross-entropy of a frozen float32 head": fast,
        "linear recurrence": "sequential" if platform == "cpu" else "associative",
    }


class PlatformOperation:
    """An operation whose implementation depends on the platform that a program is lowered for.

    Both functions take the same arguments, pytrees of arrays and hashable keywords, and return a tuple of arrays.
    Derivatives and `jax.vmap` are those of `reference`.

    Attributes:
        reference: The implementation for other platforms.
        cpu: The implementation for the CPU; None for the reference.
        tpu: The implementation for TPUs, in Pallas; None for the reference. Its keyword `interpret` says whether to
            interpret it, on any platform.
        like: Positions, among all arrays of the arguments, of those whose shapes the results have; None to find the
            results by tracing the reference.
        dtype: Dtype of all results; None for those of the arguments at `like`.
    """

    def __init__(
        self,
        name: str,
        *,
        reference: Callable[..., tuple[Array, ...]],
        cpu: Callable[..., tuple[Array, ...]] | None = None,
        tpu: Callable[..., tuple[Array, ...]] | None = None,
        like: tuple[int, ...] | None,
        dtype: DTypeLike | None = None,
    ):
        self._primitive = primitive = Primitive(name)
        primitive.multiple_results = True

        def flat(function: Callable[..., tuple[Array, ...]], **static: Any) -> Callable[..., list[Array]]:
            structure, keywords = static["structure"], dict(static["keywords"])
            return lambda *leaves: list(function(*jax.tree.unflatten(structure, leaves), **keywords))

        def abstract(*leaves: Any, **static: Any) -> list[Any]:
            if like is None:
                shapes = jax.eval_shape(flat(reference, **static), *leaves)
                return [leaves[0].update(shape=shape.shape, dtype=shape.dtype) for shape in shapes]
            return [leaves[i].update(dtype=jnp.dtype(leaves[i].dtype if dtype is None else dtype)) for i in like]

        def lower(function: Callable[..., tuple[Array, ...]], context: Any, *leaves: Any, **static: Any) -> Any:
            return mlir.lower_fun(flat(function, **static), multiple_results=True)(context, *leaves)

        def lower_reference(context: Any, *leaves: Any, **static: Any) -> Any:
            if static["impl"] in ("native", "pallas"):
                how, where = ("natively", "a CPU") if static["impl"] == "native" else ("in Pallas", "a TPU or CPU")
                raise GemwrightError(
                    f"{name} cannot run {how} on {'/'.join(context.module_context.platforms)}, only on {where}; "
                    "use the implementation auto or reference."
                )
            return lower(reference, context, *leaves, **static)

        def lower_cpu(context: Any, *leaves: Any, **static: Any) -> Any:
            if tpu is not None and static["impl"] == "pallas":
                return lower(functools.partial(tpu, interpret=True), context, *leaves, **static)
            # The kernel computes whole arrays: XLA would collect them from all devices.
            if cpu is None or _is_divided(context):
                if static["impl"] == "native" and cpu is not None:
                    raise GemwrightError(
                        f"{name} cannot run natively on several devices; use the implementation auto or reference."
                    )
                return lower(reference, context, *leaves, **static)
            return lower(cpu, context, *leaves, **static)

        def differentiate(primals: Any, tangents: Any, **static: Any) -> Any:
            tangents = tuple(map(ad.instantiate_zeros, tangents))
            return jax.jvp(flat(reference, **static), tuple(primals), tangents)

        def batch(leaves: Any, axes: Any, **static: Any) -> Any:
            batched = jax.vmap(flat(reference, **static), in_axes=tuple(axes))(*leaves)
            return batched, [0] * len(batched)

        primitive.def_abstract_eval(abstract)
        primitive.def_impl(self._run)
        mlir.register_lowering(primitive, lower_reference)
        mlir.register_lowering(primitive, lower_cpu, platform="cpu")
        if tpu is not None:
            lower_tpu = functools.partial(lower, functools.partial(tpu, interpret=False))
            mlir.register_lowering(primitive, lower_tpu, platform="tpu")
        ad.primitive_jvps[primitive] = differentiate
        batching.primitive_batchers[primitive] = batch
        self._compiled = jax.jit(self._bind, static_argnames=("impl", "structure", "keywords"))

    def __call__(self, *args: Any, impl: Impl = "auto", **keywords: Any) -> tuple[Array, ...]:
        """Return the results; with `impl` "native", lowering for a platform other than the CPU raises."""
        leaves, structure = jax.tree.flatten(args)
        return tuple(self._bind(*leaves, impl=impl, structure=structure, keywords=tuple(keywords.items())))

    def _bind(self, *leaves: Array, **static: Any) -> list[Array]:
        return self._primitive.bind(*leaves, **static)

    def _run(self, *leaves: Array, **static: Any) -> list[Array]:
        return self._compiled(*leaves, **static)


def _is_divided(context: Any) -> bool:
    """Return whether the program that is being lowered divides its arrays among several devices."""
    axes = context.module_context.axis_context
    return (getattr(axes, "num_devices", None) or 1) > 1


def require_cpu(packed: Array) -> Array:
    """Return the bytes of a packed weight; lowering a program that uses them for another platform raises.

    Packed weights have kernels for CPUs only, and no reference.
    """
    return _require_cpu.bind(packed)


def _keep(packed: Any) -> Any:
    return packed


def _lower_for_cpu(_: Any, packed: Any) -> list[Any]:
    return [packed]


def _refuse(context: Any, _: Any) -> Any:
    raise GemwrightError(
        f"Weights in their stored format cannot run on {'/'.join(context.module_context.platforms)}, only on a CPU; "
        "load the model with dtype bfloat16 or float32."
    )


_require_cpu = Primitive("require_cpu")
_require_cpu.def_impl(_keep)
_require_cpu.def_abstract_eval(_keep)
mlir.register_lowering(_require_cpu, _refuse)
mlir.register_lowering(_require_cpu, _lower_for_cpu, platform="cpu")
