"""The images of records: where they are, and their pixels, which are read when a batch is made.

An image is a file beside that of its record, or part of the record: a data URI, base64, or the bytes of a Parquet file.
Nothing is downloaded.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gemwright.data.sources import Place
from gemwright.errors import GemwrightError
from gemwright.families import Resample
from gemwright.images.load import load_image
from gemwright.images.preprocess import resize_square
from gemwright.runtime import machine
from gemwright.text.image_format import ImageFormat

Source: TypeAlias = str | bytes
"""The path of an image, or the content of its file."""
_DATA_URI = re.compile(r"data:[a-z0-9.+/;=-]{0,100}?;base64,", re.IGNORECASE)
_URL = re.compile(r"[a-z][a-z0-9+.-]*://|data:", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{100,}={0,2}\s*")
"""Base64 without a header; a file's name is shorter or has a dot."""


@dataclass(frozen=True)
class ImageReader:
    """What a model makes of an image.

    Attributes:
        format: How its prompts contain images.
        size: Width and height of the tower's input in pixels.
        resample: How images are resized to it.
    """

    format: ImageFormat
    size: int
    resample: Resample

    def read(self, source: Source) -> NDArray[np.float32]:
        """Return the pixels [size, size, 3] of an image, in [-1, 1].

        Raises:
            GemwrightError: It is missing or damaged, or too large.
        """
        return resize_square(_load(source)[0], self.size, self.resample)


@dataclass(frozen=True, eq=False)
class Images:
    """The images of a dataset.

    Attributes:
        reader: What the model makes of an image.
        sources: The images of each record that has some, by index.
        places: The place of each of these records.
        most: Number of images of a row of a batch.
        digest: SHA-256 of their contents.
    """

    reader: ImageReader
    sources: Mapping[int, Sequence[Source]]
    places: Mapping[int, Place]
    most: int
    digest: str

    def read(self, record: int, count: int) -> NDArray[np.float32]:
        """Return the pixels [count, size, size, 3] of the first images of a record.

        Raises:
            DataError: An image is missing or damaged; the message names the file and line of its record.
        """
        try:
            return np.stack([self.reader.read(source) for source in self.sources[record][:count]])
        except GemwrightError as error:
            raise self.places[record].error(str(error)) from error


def open_images(
    reader: ImageReader, sources: Mapping[int, Sequence[Source]], places: Mapping[int, Place]
) -> Images | None:
    """Return the images of records, after each was decoded once; None if there are none.

    Raises:
        DataError: An image is missing or damaged; the message names the file and line of its record.
    """
    if not sources:
        return None

    def check(record: int) -> bytes:
        try:
            return b"".join(_load(source)[1] for source in sources[record])
        except GemwrightError as error:
            raise places[record].error(str(error)) from error

    total, pool = hashlib.sha256(), ThreadPoolExecutor(machine.cores())
    try:
        for digest in pool.map(check, sources):
            total.update(digest)
    finally:
        pool.shutdown(cancel_futures=True)
    return Images(reader, sources, places, max(map(len, sources.values())), total.hexdigest())


def join_images(parts: Sequence[Images | None], starts: Sequence[int]) -> Images | None:
    """Return the images of several data, of which each begins at a record."""
    found = [(part, start) for part, start in zip(parts, starts, strict=True) if part is not None]
    if not found:
        return None
    return Images(
        found[0][0].reader,
        {start + record: sources for part, start in found for record, sources in part.sources.items()},
        {start + record: place for part, start in found for record, place in part.places.items()},
        max(part.most for part, _ in found),
        hashlib.sha256("".join(part.digest for part, _ in found).encode()).hexdigest(),
    )


def _load(source: Source) -> tuple[NDArray[np.uint8], bytes]:
    """Return the RGB pixels of an image, and the SHA-256 of its file."""
    if isinstance(source, bytes):
        return load_image(source), hashlib.sha256(source).digest()
    pixels = load_image(source)
    with Path(source).open("rb") as file:
        return pixels, hashlib.file_digest(file, "sha256").digest()


def read_source(value: Any, folder: Path) -> Source:
    """Return the image that a value of a record gives.

    Args:
        value: A path, a data URI, base64, bytes, or a mapping with `bytes` or `path` or `url` (as datasets writes it).
        folder: The folder of the record's file, to which paths are relative.

    Raises:
        GemwrightError: It is none of these, or a URL.
    """
    if isinstance(value, Mapping):
        given = next((value[key] for key in ("bytes", "path", "url") if value.get(key)), None)
        if given is None or isinstance(given, Mapping):
            raise GemwrightError('an image has neither "bytes" nor "path"; correct the record.')
        return read_source(given, folder)
    if isinstance(value, bytes) and value:
        return value
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise GemwrightError(
            f"an image is {type(value).__name__}, and not the path of a file or its content in base64; correct the "
            "record."
        )
    if found := _DATA_URI.match(value):
        return _decode(value[found.end() :])
    if _BASE64.fullmatch(value):
        return _decode(value)
    if _URL.match(value):
        raise GemwrightError(
            f"the image {value:.60} is a URL, and nothing is downloaded; save it to a file beside the records."
        )
    return str(folder / value)


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError as error:
        raise GemwrightError(f"the base64 of an image is damaged ({error}); correct the record.") from error
