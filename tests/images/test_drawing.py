"""Drawn boxes, labels and masks change the expected pixels, at every image size; and the example program runs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from gemwright.errors import GemwrightError
from gemwright.images.drawing import draw, save_png
from gemwright.images.locations import Box, Found
from gemwright.images.masks import LAYOUT

EXAMPLE = Path(__file__).parents[2] / "examples" / "draw_locations.py"
SEG = "<seg001>" * 16


def gray(height: int, width: int) -> NDArray[np.uint8]:
    return np.full((height, width, 3), 128, np.uint8)


def changed(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return (image != 128).any(axis=2)


def color_at(image: NDArray[np.uint8], y: int, x: int) -> tuple[int, ...]:
    return tuple(image[y, x].tolist())


def test_without_objects_the_image_is_unchanged():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    drawn = draw(image, [])
    np.testing.assert_array_equal(drawn, image)
    assert not np.shares_memory(drawn, image)


def test_a_box_is_drawn_at_its_location():
    image = gray(200, 300)
    drawn = draw(image, [Found("", Box(0.25, 0.2, 0.75, 0.8))])
    np.testing.assert_array_equal(image, gray(200, 300))
    top, left, bottom, right = 50, 60, 150, 240
    color = color_at(drawn, top, left)
    assert max(color) - min(color) > 100  # not a gray
    for y, x in ((top, 150), (bottom - 1, 150), (100, left), (100, right - 1), (bottom - 1, right - 1)):
        assert color_at(drawn, y, x) == color
    assert not changed(drawn)[top + 5 : bottom - 5, left + 5 : right - 5].any()
    outside = changed(drawn)
    outside[top - 2 : bottom + 2, left - 2 : right + 2] = False
    assert not outside.any()


def test_every_object_has_its_own_color():
    boxes = [Box(0.1, 0.04 + 0.08 * n, 0.9, 0.1 + 0.08 * n) for n in range(12)]
    drawn = draw(gray(400, 1200), [Found("", box) for box in boxes])
    colors = np.array([color_at(drawn, 200, int(box.x_min * 1200)) for box in boxes], np.int64)
    apart = np.abs(colors[:, None] - colors[None]).sum(axis=2)
    assert apart[~np.eye(12, dtype=bool)].min() > 40


def test_line_width_scales_with_the_image():
    widths = []
    for side in (100, 1000, 4000):
        drawn = draw(gray(side, side), [Found("", Box(0.25, 0.25, 0.75, 0.75))])
        color = drawn[side // 4, side // 4]
        widths.append(int((drawn[side // 2, : side // 2] == color).all(axis=1).sum()))
    assert widths[0] == 1
    assert 3 <= widths[1] <= 8
    assert 12 <= widths[2] <= 24


@pytest.mark.parametrize(
    "box", [Box(0.0, 0.0, 1.0, 1.0), Box(0.0, 0.9, 0.05, 1.0), Box(0.95, 0.95, 1.0, 1.0), Box(0.5, 0.5, 0.5, 0.5)]
)
def test_a_label_is_complete_at_every_box(box: Box):
    drawn, plain = (draw(gray(300, 300), [Found(label, box)]) for label in ("a label", ""))
    rows, columns = np.nonzero((drawn != plain).any(axis=2))
    alone = draw(gray(300, 300), [Found("a label", Box(0.5, 0.2, 0.9, 0.21))])
    base = draw(gray(300, 300), [Found("", Box(0.5, 0.2, 0.9, 0.21))])
    free_rows, free_columns = np.nonzero((alone != base).any(axis=2))
    # Part of a tag may overlap a frame of its own color; it is never cut off by the edge of the image.
    assert abs(int(np.ptp(rows)) - int(np.ptp(free_rows))) <= 4
    assert abs(int(np.ptp(columns)) - int(np.ptp(free_columns))) <= 4


def test_labels_do_not_cover_each_other():
    boxes = [Box(0.4, 0.3, 0.8, 0.6)] * 3
    drawn = draw(gray(300, 300), [Found("mmmm", box) for box in boxes])
    below = draw(gray(300, 300), [Found("", box) for box in boxes])
    tags = (drawn != below).any(axis=2)
    one = draw(gray(300, 300), [Found("mmmm", boxes[0])])
    single = (one != draw(gray(300, 300), [Found("", boxes[0])])).any(axis=2)
    assert tags.sum() > 2.5 * single.sum()


def test_a_label_is_complete_without_free_space():
    box = Box(0.95, 0.0, 1.0, 0.05)
    crowd = [Found("mmmm", box)] * 20
    silent = [Found("", box)] * 20
    crowded, alone = (draw(gray(60, 100), [*others, Found("mmmm", box)]) for others in (crowd, silent))
    colors, counts = np.unique(alone[changed(alone)], axis=0, return_counts=True)
    color = colors[counts.argmax()]  # of the last tag
    assert (crowded == color).all(axis=2).sum() > 0.8 * counts.max()


def test_a_mask_tints_only_its_inside():
    mask = np.zeros((200, 200), np.bool_)
    mask[40:160, 40:160] = True
    found = [Found("", Box(0.0, 0.0, 1.0, 1.0)), Found("", Box(0.0, 0.0, 1.0, 1.0))]
    drawn = draw(gray(200, 200), found, iter([None, mask]))
    plain = draw(gray(200, 200), found)
    color = np.array(color_at(plain, 100, 0), float)  # of the last object, whose frame is on top
    np.testing.assert_allclose(drawn[100, 100], 128 + (color - 128) * 105 / 255, atol=1.5)
    tinted = (drawn != plain).any(axis=2)
    assert tinted[40:160, 40:160].all()
    tinted[35:165, 35:165] = False
    assert not tinted.any()
    assert (np.abs(drawn[41, 100].astype(float) - 128) > np.abs(drawn[100, 100].astype(float) - 128)).any()  # the edge


LABELS = st.text(max_size=30) | st.sampled_from(
    [
        "\x00\x1b[31m\r\n",
        "\ud800\udfff",
        "字" * 300,
        "a" * 100_000,
        "e\u0301\u0301\u0301" * 90,
        "مرحبا",
        "🐈‍⬛",
        "\u202eabc",
    ]
)
SIDES = st.integers(1, 60) | st.integers(60, 400)
FRACTIONS = st.floats(-0.5, 1.5)
OBJECTS = st.builds(Found, LABELS, st.builds(Box, FRACTIONS, FRACTIONS, FRACTIONS, FRACTIONS))


@settings(max_examples=50, deadline=None)
@given(SIDES, SIDES, st.lists(OBJECTS, max_size=4), st.randoms())
def test_any_input_is_drawn(height: int, width: int, found: list[Found], random: object):
    mask = np.arange(height * width).reshape(height, width) % 7 < 3
    drawn = draw(gray(height, width), found, [mask, ~mask, np.zeros_like(mask)])
    assert drawn.shape == (height, width, 3)
    assert drawn.dtype == np.uint8


def test_the_file_is_complete_or_absent(tmp_path: Path):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    save_png(image, tmp_path / "out.image")
    with Image.open(tmp_path / "out.image") as written:
        assert written.format == "PNG"
        np.testing.assert_array_equal(np.asarray(written), image)
    assert [path.name for path in tmp_path.iterdir()] == ["out.image"]
    for path in (tmp_path / "missing" / "a.png", tmp_path / "folder"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        with pytest.raises(GemwrightError, match="cannot be written"):
            save_png(image, path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "out.image"]


def run_example(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-W", "error", str(EXAMPLE), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_example_draws_and_prints(tmp_path: Path):
    photo, output, weights = tmp_path / "photo.png", tmp_path / "out.png", tmp_path / "vae-oid.npz"
    save_png(gray(100, 200), photo)
    text = f"<loc0256><loc0256><loc0767><loc0767>{SEG} cat"

    bare = run_example(photo, text, output)
    assert bare.returncode == 0, bare.stderr
    assert bare.stderr == "Masks are not drawn without the mask decoder; pass --masks vae-oid.npz.\n"
    [cat] = json.loads(bare.stdout)
    assert cat == {
        "label": "cat",
        "box": {"y_min": 256 / 1023, "x_min": 256 / 1023, "y_max": 767 / 1023, "x_max": 767 / 1023},
        "mask_codes": [1] * 16,
    }
    with Image.open(output) as drawn:
        assert drawn.size == (200, 100)
        assert drawn.getpixel((100, 60)) == (128, 128, 128)

    full = {name: np.ones(shape, np.float32) for name, shape in LAYOUT.items()}
    np.savez(weights, **full)  # pyright: ignore[reportArgumentType]
    masked = run_example(photo, text, output, "--masks", weights)
    assert (masked.returncode, masked.stderr, masked.stdout) == (0, "", bare.stdout)
    with Image.open(output) as drawn:
        assert drawn.getpixel((100, 60)) != (128, 128, 128)

    wrong = run_example(photo, text, tmp_path / "other.png", "--masks", photo)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith(str(photo))
    assert wrong.stderr.count("\n") == 1
    assert not (tmp_path / "other.png").exists()
