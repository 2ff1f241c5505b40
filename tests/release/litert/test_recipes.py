"""Encodings against their definitions: a value is a whole number of steps of its row or block."""

import numpy as np
import pytest

from gemwright.release.litert.recipes import BLOCK, RECIPES, encode, encoded_bytes, expected_bytes
from gemwright.release.litert.verify import find_recipe
from gemwright.variants import VARIANTS


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    rows = np.random.default_rng(0).standard_normal((5, 4 * BLOCK)).astype(np.float32)
    rows[1] = 0
    rows[2, :3] = 1e-30, -40, 40
    return rows


def test_int8_rounds_to_the_nearest_step_of_a_row(rows: np.ndarray):
    raw, scales = encode("int8", rows)
    assert raw.nbytes == encoded_bytes("int8", rows.size)
    error = np.abs(raw.view(np.int8) * scales[:, None].astype(np.float64) - rows).max(axis=1)
    assert np.all(error <= np.abs(rows).max(axis=1) / 127 / 2 * 1.001)
    assert np.abs(raw.view(np.int8)).max() == 127


def test_int4_is_no_worse_than_the_step_that_the_largest_value_gives(rows: np.ndarray):
    raw, scales = encode("int4", rows)
    assert raw.nbytes == encoded_bytes("int4", rows.size)
    values = np.stack([raw & 15, raw >> 4], axis=-1).reshape(-1, BLOCK).astype(np.int8)
    values = np.where(values > 7, values - 16, values)
    found = values * scales.reshape(-1, 1)
    blocks = rows.reshape(-1, BLOCK)
    step = np.abs(blocks).max(axis=1, keepdims=True) / 7
    usual = np.rint(blocks / np.maximum(step, 1e-30)) * step
    error, bound = np.square(found - blocks).sum(), np.square(usual - blocks).sum()
    assert error < bound
    assert np.array_equal(scales, scales.astype(np.float16))


def test_expected_sizes_follow_the_recipes():
    config = VARIANTS["gemma-3-270m"].config
    sizes = {name: expected_bytes(recipe, config) for name, recipe in RECIPES.items()}
    table = config.vocab * config.width
    layers = VARIANTS["gemma-3-270m"].parameters - table
    assert sizes["f32"] == 4 * (table + layers)
    assert table + layers < sizes["int8"] < 1.01 * (table + layers)
    coarse = sum(2 * 640 * 2048 for _ in config.layers)  # gate and up
    assert table + layers - coarse / 2 < sizes["int4"] < 1.01 * (table + layers - coarse / 2)


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_of_a_file_is_found_by_its_size(name: str):
    config = VARIANTS["gemma-3-270m"].config
    assert find_recipe(config, expected_bytes(RECIPES[name], config) + 10_000_000) == name
