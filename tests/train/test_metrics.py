"""Metrics of a run: its files have each step once, the plot has the curves, and operations are counted."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2

from gemwright.data import Batch
from gemwright.errors import GemwrightError
from gemwright.model.config import Attention
from gemwright.train import flops
from gemwright.train.metrics import Metrics, Progress
from gemwright.train.plot import Curve, plot
from gemwright.train.recipe import Recipe
from tests.tiny.hf import make_model
from tests.train.tiny_run import prepare_tiny


def progress(step: int, loss: float = 2.0, held_out: float | None = None) -> Progress:
    return Progress(step, 10, loss, 1.0, 0.1, 30, 20, 0.5, 1e9, 0.3, 10**9, 2.0, held_out, ())


def read_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def write(folder: Path, step: int, *steps: Progress) -> None:
    metrics = Metrics(folder, step)
    for each in steps:
        metrics.write(each)
    metrics.sync()
    metrics.close()


def test_a_continued_file_has_each_step_once(tmp_path: Path) -> None:
    write(tmp_path, 0, *map(progress, range(1, 6)))
    write(tmp_path, 3, progress(4, 1.5), progress(5, 1.4))
    assert [(line["step"], line["loss"]) for line in read_lines(tmp_path)] == [
        (1, 2.0),
        (2, 2.0),
        (3, 2.0),
        (4, 1.5),
        (5, 1.4),
    ]


@pytest.mark.parametrize("tail", ['{"step": 3, "lo', "null\n", '{"step": 2}', "\xff\n"])
def test_an_unfinished_or_damaged_line_ends_the_file(tail: str, tmp_path: Path) -> None:
    write(tmp_path, 0, progress(1), progress(2))
    with (tmp_path / "metrics.jsonl").open("a", encoding="latin-1") as file:
        file.write(tail)
    write(tmp_path, 2, progress(3))
    assert [line["step"] for line in read_lines(tmp_path)] == [1, 2, 3]


def test_numbers_that_are_not_finite_are_valid_json(tmp_path: Path) -> None:
    write(tmp_path, 0, progress(1, math.nan), progress(2, math.inf))
    assert [line["loss"] for line in read_lines(tmp_path)] == [None, None]


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(GemwrightError, match=r"metrics\.jsonl cannot be written \(Is a directory\)"):
        Metrics(tmp_path, 0)


def read_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read TensorBoard's events: records of a length, its checksum, an event and its checksum."""
    scalars: dict[str, list[tuple[int, float]]] = {}
    for path in sorted((folder / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            for value in event.summary.value:
                scalars.setdefault(value.tag, []).append((event.step, value.simple_value))
    return scalars


def test_events_have_the_losses(tmp_path: Path) -> None:
    write(tmp_path, 0, progress(0, math.nan, 2.5), progress(1), progress(2, 1.5, 2.25))
    scalars = read_scalars(tmp_path)
    assert scalars["loss"] == [(1, 2.0), (2, 1.5)]
    assert scalars["held_out"] == [(0, 2.5), (2, 2.25)]


def count_colored(path: Path) -> tuple[int, int]:
    """Return the number of bluish and of reddish pixels between the axes."""
    with Image.open(path) as image:
        assert image.size == (960, 600)
        pixels = np.asarray(image.convert("RGB")).astype(int)[48:536, 84:936]
    difference = pixels[..., 2] - pixels[..., 0]
    return int(np.sum(difference > 60)), int(np.sum(difference < -60))


@pytest.mark.parametrize("count", [2, 50, 3000])
def test_a_plot_has_both_curves(count: int, tmp_path: Path) -> None:
    losses = [(step, 1 + 2 / step) for step in range(1, count + 1)]
    plot(tmp_path / "loss.png", [Curve("training", losses), Curve("held-out", [(0, 3.0), (count, 1.2)])])
    assert min(count_colored(tmp_path / "loss.png")) > 400


def test_a_plot_of_equal_losses_or_none(tmp_path: Path) -> None:
    plot(tmp_path / "none.png", [Curve("training", [])])
    assert not (tmp_path / "none.png").exists()
    plot(tmp_path / "equal.png", [Curve("training", [(1, 0.0), (2, 0.0)])])
    assert count_colored(tmp_path / "equal.png")[0] > 400


@pytest.mark.parametrize(("method", "passes"), [("lora", 2), ("full", 3)])
def test_operations_are_those_of_the_products(method: Any, passes: int, tiny: Path, tmp_path: Path) -> None:
    config = prepare_tiny(tiny, tmp_path).checkpoint.config
    model = make_model("gemma3_text")
    weights = sum(value.numel() for name, value in model.named_parameters() if name.endswith("proj.weight"))
    segments = np.array([[1] * 20 + [2] * 9 + [0] * 3, [1] * 32], np.int32)
    learned = segments > 1
    batch = Batch(segments, segments, learned, segments, segments)
    expected = 2 * passes * (weights * 61 + model.config.vocab_size * 64 * 9)
    places = np.arange(32)
    for layer in config.layers:
        assert isinstance(layer.mixer, Attention)
        causal = places[:, None] >= places
        if layer.mixer.window:
            causal &= places[:, None] - places < layer.mixer.window
        for row in segments:
            pairs = causal & (row[:, None] == row) & (row > 0)
            expected += 3 * 4 * 2 * 32 * int(pairs.sum())
    assert flops.count(config, Recipe(method=method), batch) == expected
