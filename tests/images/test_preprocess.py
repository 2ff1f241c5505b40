"""Preprocessed images equal those of transformers."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma3.processing_gemma3 import Gemma3Processor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from gemwright.images.preprocess import pan_and_scan, resize_square

SIZES = [(224, 224), (1, 1), (2, 3), (3, 3), (37, 53), (480, 641), (1, 700), (900, 3), (301, 1200), (1201, 640)]
CROPS = {key: value for key, value in Gemma3Processor.images_kwargs.items() if key.startswith("pan_and_scan")}


def make_image(height: int, width: int) -> NDArray[np.uint8]:
    """Return coarse and fine noise that reaches 0 and 255, similar to a photograph."""
    random = np.random.default_rng(height * 10007 + width)
    coarse = Image.fromarray(random.integers(0, 256, (height // 40 + 2, width // 40 + 2, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) * 1.4 - 50
    return np.clip(smooth + random.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8)


def channels_last(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return pixels [height, width, channels]."""
    return np.moveaxis(pixels, 0, -1)


@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_paligemma_equals_the_reference_bit_by_bit(shape: tuple[int, int]) -> None:
    image = make_image(*shape)
    for size in (224, 448):
        reference = SiglipImageProcessorPil(size={"height": size, "width": size})
        expected = channels_last(reference(Image.fromarray(image))["pixel_values"][0])
        result = resize_square(image, size, "bicubic")
        assert result.dtype == expected.dtype == np.float32
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_gemma3_equals_the_reference_bit_by_bit(shape: tuple[int, int]) -> None:
    image = make_image(*shape)
    reference = Gemma3ImageProcessorPil(size={"height": 896, "width": 896})
    expected = channels_last(reference(Image.fromarray(image))["pixel_values"][0])
    np.testing.assert_array_equal(resize_square(image, 896, "bilinear"), expected)


@pytest.mark.parametrize("shape", [(480, 641), (60, 90)], ids=str)
def test_bilinear_is_the_antialiased_filter_of_jax(shape: tuple[int, int]) -> None:
    # Pillow rounds to a gray level (2/255) after each of its two passes, an error of half a level each; JAX does not.
    image = make_image(*shape)
    exact = jax.image.resize(image.astype(np.float32), (224, 224, 3), "linear") / 127.5 - 1
    np.testing.assert_allclose(resize_square(image, 224, "bilinear"), exact, rtol=0, atol=1.01 * 2 / 255)


def test_black_is_minus_one_and_white_is_one() -> None:
    grays = np.arange(256, dtype=np.uint8)
    image = np.broadcast_to(grays[:, None, None], (256, 256, 3))
    result = resize_square(image, 256, "bicubic")
    assert (result[0] == -1).all()
    assert (result[-1] == 1).all()
    np.testing.assert_allclose(result[:, 0, 0], (grays - 127.5) / 127.5, rtol=0, atol=1e-7)


@pytest.mark.parametrize("shape", [(300, 900), (1400, 520), (400, 1000), (640, 800), (512, 512), (257, 3000)], ids=str)
def test_an_image_and_its_crops_equal_the_reference(shape: tuple[int, int]) -> None:
    image = make_image(*shape)
    reference = Gemma3ImageProcessorPil(size={"height": 224, "width": 224}, do_pan_and_scan=True, **CROPS)
    expected = reference(Image.fromarray(image))
    crops = pan_and_scan(image)
    assert [len(crops)] == list(expected["num_crops"])
    for crop, pixels in zip([image, *crops], expected["pixel_values"], strict=True):
        np.testing.assert_array_equal(resize_square(crop, 224, "bilinear"), channels_last(pixels))


SIDE = st.integers(1, 3000) | st.integers(250, 1100)


@settings(deadline=None, max_examples=500)
@given(SIDE, SIDE, st.sampled_from([1.0, 1.2, 1.5, 2.5]), st.sampled_from([1, 64, 256]), st.integers(1, 6))
def test_crops_are_cut_where_the_reference_cuts(
    height: int, width: int, min_ratio: float, min_crop: int, max_crops: int
) -> None:
    image = np.empty((height, width, 3), np.uint8)
    expected = Gemma3ImageProcessorPil().pan_and_scan(np.moveaxis(image, -1, 0), min_crop, max_crops, min_ratio)
    crops = pan_and_scan(image, min_ratio=min_ratio, min_crop=min_crop, max_crops=max_crops)
    assert [crop.shape for crop in crops] == [np.moveaxis(crop, 0, -1).shape for crop in expected]
    assert [address(crop) for crop in crops if crop.size] == [address(crop) for crop in expected if crop.size]


def address(crop: NDArray[np.uint8]) -> int:
    """Return the address of a view, which identifies its corner."""
    return crop.__array_interface__["data"][0]
