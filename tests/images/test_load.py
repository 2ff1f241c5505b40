"""Images of every supported format are loaded exactly, and all other input is rejected in one sentence."""

import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from gemwright.errors import GemwrightError
from gemwright.images import load
from gemwright.images.load import count_pixels, load_image

RANDOM = np.random.default_rng(0)
IMAGE = RANDOM.integers(0, 256, (13, 9, 3), np.uint8)
ALPHA = np.linspace(0, 255, 13 * 9).astype(np.uint8).reshape(13, 9, 1)
RGBA = np.concatenate([IMAGE, ALPHA], axis=-1)
SMOOTH = np.clip(np.mgrid[0:48, 0:32].sum(0)[..., None] + [0, 60, 120], 0, 255).astype(np.uint8)


def encode(image: Image.Image | NDArray[Any], kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, bits: int, color: int, values: bytes) -> bytes:
    """Return a PNG written without Pillow; color 0 is gray, 2 is RGB, 4 is gray with alpha, 6 is RGBA."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(values)) + chunk(b"IEND", b"")


def png_rows(array: NDArray[np.uint16], color: int) -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    return png(array.shape[1], array.shape[0], 16, color, rows)


def tiff(width: int, height: int, data: bytes, order: str = "<", **tags: int) -> bytes:
    """Return a gray TIFF written without Pillow: the data, then one directory."""
    numbers = {"bits": 258, "compression": 259, "photometric": 262, "tile_width": 322, "tile_height": 323}
    entries = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 277: 1} | {numbers[k]: v for k, v in tags.items()}
    start, length = (324, 325) if "tile_width" in tags else (273, 279)
    entries |= {start: 8, length: len(data)}
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8 + len(data)) + data
    directory = b"".join(struct.pack(order + "HHII", tag, 4, 1, entries[tag]) for tag in sorted(entries))
    return head + struct.pack(order + "H", len(entries)) + directory + bytes(4)


def over_white(rgba: NDArray[np.uint8]) -> NDArray[np.float64]:
    alpha = rgba[..., 3:] / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


def gray(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(values[..., None], 3, axis=-1)


def error_of(source: Any) -> str:
    with pytest.raises(GemwrightError) as caught:
        load_image(source)
    assert type(caught.value) is GemwrightError
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


LOSSLESS = [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {"lossless": True})]


@pytest.mark.parametrize(("kind", "options"), LOSSLESS, ids=str)
@pytest.mark.parametrize("shape", [(13, 9), (1, 1)], ids=str)
def test_every_kind_of_source_is_loaded(tmp_path: Path, kind: str, options: Any, shape: tuple[int, int]) -> None:
    image = IMAGE[: shape[0], : shape[1]]
    data = encode(image, kind, **options)
    path = tmp_path / "image"
    path.write_bytes(data)
    for source in (data, path, str(path), Image.fromarray(image), Image.open(io.BytesIO(data)), image):
        result = load_image(source)
        assert result.dtype == np.uint8
        np.testing.assert_array_equal(result, image)


def test_jpeg_is_loaded_within_its_quality() -> None:
    for options in ({}, {"progressive": True}):
        result = load_image(encode(SMOOTH, "JPEG", quality=100, subsampling=0, **options))
        assert np.abs(result.astype(int) - SMOOTH).max() <= 2


def test_one_bit_and_palettes() -> None:
    bits = IMAGE[..., 0] > 127
    for kind in ("PNG", "BMP", "TIFF", "GIF"):
        np.testing.assert_array_equal(load_image(encode(bits, kind)), gray(bits * np.uint8(255)))
    colors, indices = RANDOM.integers(0, 256, (16, 3), np.uint8), IMAGE[..., 0] % 16
    image = Image.fromarray(indices, "L").convert("P")
    image.putdata(indices.ravel().tolist())
    image.putpalette(colors.tobytes())
    for kind in ("PNG", "BMP", "TIFF", "GIF"):
        np.testing.assert_array_equal(load_image(encode(image, kind)), colors[indices])
    opacity = np.linspace(0, 255, 16).astype(np.uint8)
    expected = over_white(np.concatenate([colors, opacity[:, None]], axis=-1)[indices])
    np.testing.assert_allclose(load_image(encode(image, transparency=opacity.tobytes())), expected, rtol=0, atol=0.51)
    expected = np.where(indices[..., None] == 5, 255, colors[indices])
    for kind in ("PNG", "GIF"):
        np.testing.assert_array_equal(load_image(encode(image, kind, transparency=5)), expected)


def test_transparency_is_composited_on_white() -> None:
    for source in (encode(RGBA), encode(RGBA, "TIFF"), encode(RGBA, "WEBP", lossless=True, exact=True)):
        np.testing.assert_allclose(load_image(source), over_white(RGBA), rtol=0, atol=0.51)
    two = np.concatenate([RGBA[..., :1], ALPHA], axis=-1)
    expected = over_white(np.concatenate([gray(two[..., 0]), ALPHA], axis=-1))
    np.testing.assert_allclose(load_image(encode(Image.fromarray(two))), expected, rtol=0, atol=0.51)
    key = IMAGE[4, 4]
    expected = np.where((key == IMAGE).all(-1, keepdims=True), 255, IMAGE)
    np.testing.assert_array_equal(load_image(encode(IMAGE, transparency=tuple(key.tolist()))), expected)
    for mode in ("La", "RGBa"):  # premultiplied alpha: rounded once more in each direction
        image = Image.fromarray(two if mode == "La" else RGBA).convert(mode)
        expected = over_white(np.concatenate([gray(two[..., 0]), ALPHA], axis=-1) if mode == "La" else RGBA)
        np.testing.assert_allclose(load_image(image), expected, rtol=0, atol=1.51)


def test_sixteen_bits_become_their_high_bytes() -> None:
    values = np.linspace(0, 65535, 640).astype(np.uint16).reshape(20, 32)
    expected = gray((values >> 8).astype(np.uint8))
    colors = np.repeat(values[..., None], 3, axis=-1)
    np.testing.assert_array_equal(load_image(png_rows(values, 0)), expected)
    np.testing.assert_array_equal(load_image(png_rows(colors, 2)), expected)
    opaque = np.full((20, 32, 1), 65535, np.uint16)
    np.testing.assert_array_equal(load_image(png_rows(np.concatenate([colors, opaque], axis=-1), 6)), expected)
    np.testing.assert_array_equal(load_image(png_rows(np.concatenate([values[..., None], opaque], -1), 4)), expected)
    for order in "<>":
        data = values.astype(order + "u2").tobytes()
        np.testing.assert_array_equal(load_image(tiff(32, 20, data, order, bits=16)), expected)
    np.testing.assert_array_equal(load_image(Image.fromarray(values)), expected)


@pytest.mark.parametrize(
    "source",
    [
        encode(Image.new("I", (3, 2), 70000), "TIFF"),
        encode(Image.new("F", (3, 2), 0.5), "TIFF"),
        Image.new("F", (3, 2), 0.5),
        tiff(2, 1, bytes(3), bits=12),
        tiff(2, 1, bytes(4), bits=16, photometric=0),
    ],
    ids=["int32", "float32", "Pillow float32", "12 bits", "16 bits with white as 0"],
)
def test_values_of_unknown_range_are_rejected(source: Any) -> None:
    assert "8 bits a channel" in error_of(source)


def test_cmyk() -> None:
    inks = np.zeros((32, 48, 4), np.uint8)
    inks[:16, :16, 0], inks[:16, 16:32, 1], inks[:16, 32:, 2], inks[16:, :16, 3] = 255, 255, 255, 255
    inks[16:, 16:32] = 40, 80, 120, 60
    ink, black = 255 - inks[..., :3].astype(float), 255 - inks[..., 3:].astype(float)
    image = Image.fromarray(inks, "CMYK")
    jpeg = encode(image, "JPEG", quality=100)
    assert b"Adobe" in jpeg  # Adobe stores the inks inverted
    for data in (encode(image, "TIFF"), jpeg):
        np.testing.assert_allclose(load_image(data), ink * black / 255, rtol=0, atol=2)


UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_images_are_turned_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind, options in LOSSLESS:
        if kind != "BMP":
            data = encode(IMAGE, kind, exif=exif, **options)
            np.testing.assert_array_equal(load_image(data), UPRIGHT[orientation](IMAGE))
    data = encode(IMAGE, "JPEG", exif=exif)
    np.testing.assert_array_equal(load_image(data), UPRIGHT[orientation](load_image(encode(IMAGE, "JPEG"))))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_data_is_ignored(kind: str) -> None:
    expected = load_image(encode(SMOOTH, kind))
    np.testing.assert_array_equal(load_image(encode(SMOOTH, kind, exif=b"Exif\0\0nonsense")), expected)
    data = encode(SMOOTH, kind, exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0")
    with pytest.warns(UserWarning, match="EXIF"):  # suppressed by load_image
        Image.open(io.BytesIO(data)).getexif()
    np.testing.assert_array_equal(load_image(data), expected)


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})], ids=str)
def test_the_first_frame_of_an_animation_is_loaded(kind: str, options: Any) -> None:
    first, second = IMAGE & 0x80, ~IMAGE & 0x80
    data = encode(first, kind, save_all=True, append_images=[Image.fromarray(second)], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    np.testing.assert_array_equal(load_image(data), first)


WHOLE = {
    "PNG": encode(RGBA), "JPEG": encode(IMAGE, "JPEG"), "CMYK": encode(Image.fromarray(RGBA, "CMYK"), "JPEG"),
    "WEBP": encode(RGBA, "WEBP"), "GIF": encode(IMAGE, "GIF"), "BMP": encode(IMAGE, "BMP"),
    "TIFF": encode(IMAGE, "TIFF"), "LZW": encode(IMAGE, "TIFF", compression="tiff_lzw"),
    "palette": encode(Image.fromarray(IMAGE).quantize(8)), "I;16": encode(IMAGE[..., 0].astype(np.uint16)),
}  # fmt: skip


@pytest.mark.parametrize("kind", WHOLE)
def test_truncated_files_are_rejected(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "cut.image"
    for size in (0, 3, 20, len(WHOLE[kind]) * 2 // 3):
        path.write_bytes(WHOLE[kind][:size])
        assert str(path) in error_of(path)
        assert f"image of {size} bytes" in error_of(WHOLE[kind][:size])


@settings(deadline=None, max_examples=400)
@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_damaged_bytes_give_an_image_or_one_sentence(kind: str, data: st.DataObject) -> None:
    broken = bytearray(WHOLE[kind])
    for _ in range(data.draw(st.integers(1, 5))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    image, sentence = IMAGE, ""
    try:
        image = load_image(bytes(broken))
    except GemwrightError as error:
        sentence = str(error)
    assert "\n" not in sentence
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3


@pytest.mark.parametrize(
    "data", [b"", b"text", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", b"%PDF-1.7\n"], ids=str
)
def test_other_formats_are_rejected(data: bytes) -> None:
    assert "pass a PNG, JPEG, WebP, GIF, BMP or TIFF" in error_of(data)


def test_other_formats_of_pillow_are_rejected() -> None:
    for kind in ("PPM", "TGA", "ICO", "PCX", "EPS"):
        assert "of another format" in error_of(encode(IMAGE, kind))


@pytest.mark.parametrize(
    "address",
    ["http://a/b.png", "HTTPS://a/b.png", "ftp://a", "file:///etc/passwd", "gs://a/b", "data:image/png;base64,AAAA"],
)
def test_urls_are_rejected(address: str) -> None:
    assert error_of(address) == f"{address} is a URL, and nothing is downloaded: save the image to a file first."


def test_invalid_paths_are_rejected(tmp_path: Path) -> None:
    assert error_of(tmp_path / "none.png") == f"{tmp_path / 'none.png'} does not exist: pass an image file."
    assert "is not a file" in error_of(tmp_path)
    assert "is not a file" in error_of("/dev/zero")
    assert "does not exist" in error_of("a\0b")
    assert "File name too long" in error_of("A" * 100_000)
    assert len(error_of("A" * 100_000)) < 300
    locked = tmp_path / "locked.png"
    locked.write_bytes(WHOLE["PNG"])
    locked.chmod(0)
    if not os.access(locked, os.R_OK):  # root reads everything
        assert "Permission denied" in error_of(locked)


@pytest.mark.parametrize(
    "array",
    [IMAGE.astype(np.float32), IMAGE[..., 0], RGBA, IMAGE[:0], np.zeros((3, 0, 3), np.uint8)],
    ids=["float", "no channels", "four channels", "no rows", "no columns"],
)
def test_other_arrays_are_rejected(array: NDArray[Any]) -> None:
    assert str(list(array.shape)) in error_of(array)


def test_an_image_without_pixels_is_rejected() -> None:
    assert "no pixels" in error_of(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("side", [60_000, 12_000, 10_001])
@pytest.mark.parametrize("limit", [None, Image.MAX_IMAGE_PIXELS], ids=["without Pillow's limit", "with it"])
def test_too_many_pixels_are_rejected_by_the_header(
    monkeypatch: pytest.MonkeyPatch, side: int, limit: int | None
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    assert "more than 100 megapixels" in error_of(png(side, side, 8, 2, b""))


def test_an_image_of_the_maximum_size_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "MAX_PIXELS", 13 * 9)
    assert load_image(encode(IMAGE)).shape == IMAGE.shape
    assert "megapixels" in error_of(encode(np.zeros((2, 59, 3), np.uint8)))


def tile_bomb(side: int) -> bytes:
    """Return a TIFF of one pixel in a large tile; tiles are decoded whole."""
    packer = zlib.compressobj()
    data = b"".join(packer.compress(bytes(1 << 20)) for _ in range(side * side >> 20)) + packer.flush()
    return tiff(1, 1, data, compression=8, tile_width=side, tile_height=side)


def test_decompression_bombs_take_no_memory(tmp_path: Path) -> None:
    small = tmp_path / "small.tiff"
    small.write_bytes(tile_bomb(1024))
    assert load_image(small).shape == (1, 1, 3)  # so the others are rejected for their size
    (tmp_path / "tile.tiff").write_bytes(tile_bomb(16_384))
    (tmp_path / "header.png").write_bytes(png(60_000, 60_000, 8, 2, b""))
    script = f"""
import resource
from gemwright.images import load
from gemwright.images.load import count_pixels, load_image
load_image({str(small)!r})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in ("tile.tiff", "header.png"):
    try:
        load_image({str(tmp_path)!r} + "/" + name)
    except ValueError as error:
        assert "more than 100 megapixels" in str(error), error
    else:
        raise AssertionError(name)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 20_000  # KiB; the tile has 256 MiB


def open_files() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def test_files_are_closed_and_pillow_images_stay_open(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.tiff", tmp_path / "bad.tiff"
    good.write_bytes(WHOLE["LZW"])
    bad.write_bytes(WHOLE["LZW"][: len(WHOLE["LZW"]) * 2 // 3])
    before = open_files()
    for _ in range(3):
        load_image(good)
        error_of(bad)
        error_of(tmp_path)
    assert open_files() == before
    with Image.open(io.BytesIO(WHOLE["GIF"])) as image:
        load_image(image)
        np.testing.assert_array_equal(load_image(image), load_image(WHOLE["GIF"]))
        image.seek(0)


def test_the_result_belongs_to_the_caller() -> None:
    image = Image.fromarray(IMAGE)
    load_image(image)[:] = 0
    np.testing.assert_array_equal(np.asarray(image), IMAGE)
    assert load_image(IMAGE) is IMAGE


def test_warning_filters_are_restored() -> None:
    filters = list(warnings.filters)
    load_image(WHOLE["PNG"])
    error_of(b"")
    assert warnings.filters == filters


def test_pixels_are_counted_by_the_header_tiles_too() -> None:
    assert count_pixels(tile_bomb(1024)) == 1024 * 1024
    with pytest.raises(GemwrightError, match="of another format"):
        count_pixels(b"no image")
