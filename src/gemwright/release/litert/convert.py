"""JAX functions to one flatbuffer whose large weights are inputs, so that memory does not grow with the model."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from litert_converter import converter_api_ext as converter  # pyright: ignore[reportMissingImports]
from litert_converter.mlir import ir, passmanager  # pyright: ignore[reportMissingImports]
from litert_converter.mlir.dialects import func, stablehlo  # pyright: ignore[reportMissingImports]
from numpy.typing import NDArray

from gemwright import tree
from gemwright.model.config import Config
from gemwright.model.params import ModelWeights, param_specs
from gemwright.release.litert.program import Signature
from gemwright.release.litert.recipes import matrix_shape

PLATFORM = "tpu"
"""Platform that programs are lowered for: one without kernels of gemwright's own, which no other runtime has."""


def convert(
    config: Config, signatures: Sequence[Signature], constants: Mapping[str, NDArray[np.float32]]
) -> bytes | bytearray:
    """Return a `.tflite` in which every weight but the constants is an input of each signature, named by its path.

    Args:
        config: The model.
        signatures: Its functions.
        constants: Weights that become part of the flatbuffer, so that the converter can fold what is computed of them.
    """
    context = ir.Context()
    converter.prepare_mlir_context(context)
    with context, ir.Location.unknown():
        # One attribute for all signatures, so that a constant is stored once.
        attributes = {path: ir.DenseElementsAttr.get(np.ascontiguousarray(x)) for path, x in constants.items()}
        modules = [_build_module(context, config, signature, attributes) for signature in signatures]
        merged = converter.merge_modules(modules) if len(modules) > 1 else modules[0]
        settings = converter.ConvertToTFLConfig()
        settings.model_origin_framework = "JAX"
        settings.enable_x64 = False
        settings.canonicalizing_inf_as_min_max_float = True
        converter.run_convert_to_tfl_passes(merged, passmanager.PassManager(), settings)
        return converter.export_flatbuffer_to_bytes(getattr(merged, "operation", merged))


def _build_module(context: Any, config: Config, signature: Signature, attributes: Mapping[str, Any]) -> Any:
    """Return the module of a signature whose entry takes its inputs and then the weights without an attribute."""
    specs = tree.flatten(param_specs(config))

    def run(weights: dict[str, Any], *inputs: Any) -> Any:
        params: ModelWeights = tree.build(param_specs(config), weights)
        return signature.run(params, *inputs)

    flat = {path: jax.ShapeDtypeStruct(matrix_shape(path, spec), jnp.float32) for path, spec in specs.items()}
    exported = jax.export.export(jax.jit(run), platforms=[PLATFORM])(flat, *signature.inputs.values())
    names = [*sorted(flat), *signature.inputs]  # the order of JAX's leaves
    kept = [names[i] for i in exported.module_kept_var_idx]
    module = stablehlo.deserialize_portable_artifact(context, exported.mlir_module_serialized)
    if isinstance(module, str | bytes):
        module = ir.Module.parse(module)
    table = ir.SymbolTable(module.operation)
    inner = table["main"]
    table.set_symbol_name(inner, "inner")
    inner.attributes["sym_visibility"] = ir.StringAttr.get("private")
    types = dict(zip(kept, inner.type.inputs, strict=True))
    entries = [name for name in (*signature.inputs, *flat) if name in types and name not in attributes]
    with ir.InsertionPoint(module.body):
        outer = func.FuncOp("main", ir.FunctionType.get([types[name] for name in entries], inner.type.results))
        with ir.InsertionPoint(outer.add_entry_block()):
            given = dict(zip(entries, outer.arguments, strict=True))
            operands = [given[n] if n in given else stablehlo.ConstantOp(attributes[n]).result for n in kept]
            func.ReturnOp(func.CallOp(inner.type.results, "inner", operands).results)
    passmanager.PassManager.parse("builtin.module(inline,symbol-dce)").run(module.operation)
    converter.set_signature(module.operation, signature.name, entries, list(signature.outputs))
    return module
