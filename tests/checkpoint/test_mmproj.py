"""The vision tower of a converted Gemma 3 in llama.cpp."""

import ctypes
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from gemwright.checkpoint.convert import convert
from gemwright.checkpoint.load import load_weights
from gemwright.checkpoint.open import open_checkpoint
from gemwright.model import vision
from tests.tiny.hf import IMAGE_SIZE, write_model


@pytest.mark.peer
@pytest.mark.parametrize("dtype", ["float32", "q8_0"])
def test_llama_cpp_encodes_an_image_alike(dtype: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp.mtmd_cpp")
    convert(write_model(tmp_path / "folder", "gemma3"), tmp_path / "model.gguf", "gguf", dtype)
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    checkpoint = open_checkpoint(tmp_path / "folder")
    tower = checkpoint.config.vision
    weights = load_weights(checkpoint.file, checkpoint.mapping, checkpoint.config, "float32").vision
    assert tower is not None
    assert weights is not None
    expected = np.asarray(vision.encode(tower, weights, jnp.asarray(pixels[None] / 127.5 - 1, jnp.float32))[0])
    found = encode_with_llama_cpp(tmp_path / "model.gguf", tmp_path / "mmproj-model.gguf", pixels)
    # Its attention keeps keys and values in float16.
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-3 * np.abs(expected).max())


def encode_with_llama_cpp(model: Path, tower: Path, pixels: np.ndarray) -> np.ndarray:
    """Return the soft tokens of an image."""
    from llama_cpp import llama_cpp as lib
    from llama_cpp import mtmd_cpp as mtmd

    lib.llama_backend_init()
    parameters = lib.llama_model_default_params()
    parameters.use_extra_bufts = False  # its AMX kernels crash on some virtual machines
    decoder = lib.llama_model_load_from_file(str(model).encode(), parameters)
    options = mtmd.mtmd_context_params_default()
    options.use_gpu, options.n_threads = False, 2
    context = mtmd.mtmd_init_from_file(str(tower).encode(), decoder, options)
    assert context
    assert mtmd.mtmd_support_vision(context)
    data = (ctypes.c_uint8 * pixels.size).from_buffer_copy(pixels.tobytes())
    bitmap = mtmd.mtmd_bitmap_init(*pixels.shape[1::-1], data)
    marker, chunks = mtmd.mtmd_default_marker(), mtmd.mtmd_input_chunks_init()
    text: Any = mtmd.mtmd_input_text(marker, len(marker), False, True)
    bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
    assert mtmd.mtmd_tokenize(context, chunks, ctypes.byref(text), bitmaps, 1) == 0
    parts = [mtmd.mtmd_input_chunks_get(chunks, index) for index in range(mtmd.mtmd_input_chunks_size(chunks))]
    (image,) = (part for part in parts if mtmd.mtmd_input_chunk_get_type(part) == 1)
    assert mtmd.mtmd_encode_chunk(context, image) == 0
    shape = mtmd.mtmd_input_chunk_get_n_tokens(image), lib.llama_model_n_embd(decoder)
    return np.ctypeslib.as_array(mtmd.mtmd_get_output_embd(context), shape).copy()
