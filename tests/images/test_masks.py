"""The mask decoder against the same network in torch, its file format, and placed masks against torch."""

import collections
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gemwright.errors import CheckpointError, GemwrightError
from gemwright.images.locations import Box
from gemwright.images.masks import LAYOUT, MaskDecoder, place

ALL = Box(0.0, 0.0, 1.0, 1.0)


class Residual(torch.nn.Module):
    def __init__(self):
        super().__init__()
        conv, relu = torch.nn.Conv2d, torch.nn.ReLU
        self.net = torch.nn.Sequential(
            conv(128, 128, 3, padding=1), relu(), conv(128, 128, 3, padding=1), relu(), conv(128, 128, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.net(x)


def torch_decoder() -> torch.nn.Module:
    """Return the published network; its parameters are named as in the published file."""
    up, relu = torch.nn.ConvTranspose2d, torch.nn.ReLU
    layers: list[torch.nn.Module] = [torch.nn.Conv2d(512, 128, 1), relu(), Residual(), Residual()]
    for inputs, outputs in ((128, 128), (128, 64), (64, 32), (32, 16)):
        layers += [up(inputs, outputs, 4, stride=2, padding=1), relu()]
    model = torch.nn.Module()
    model.decoder = torch.nn.Sequential(*layers, torch.nn.Conv2d(16, 1, 1))
    model._vq_vae = torch.nn.Module()
    model._vq_vae.register_buffer("_embedding", torch.randn(128, 512))
    return model


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    model = torch_decoder()
    with torch.no_grad():  # with torch's initial values the output of these 14 layers is nearly the last bias
        for value in model.parameters():
            value.mul_(2.2)
    return model


@pytest.fixture(scope="module")
def arrays(model: torch.nn.Module) -> dict[str, NDArray[Any]]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def save(path: Path, arrays: dict[str, NDArray[Any]], compressed: bool = False) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)  # pyright: ignore[reportArgumentType]
    return path


@pytest.fixture(scope="module")
def npz(arrays: dict[str, NDArray[Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    others = {"encoder.0.weight": np.zeros((32, 1, 4, 4), np.float32), "steps": np.arange(3)}
    return save(tmp_path_factory.mktemp("masks") / "vae-oid.npz", arrays | others)


def test_the_layout_is_the_published_one(arrays: dict[str, NDArray[Any]]):
    assert {name: value.shape for name, value in arrays.items()} == dict(LAYOUT)
    weights = sum(value.size for name, value in arrays.items() if name.startswith("decoder."))
    assert weights == 1_123_457


@pytest.mark.parametrize("seed", range(3))
def test_decoding_equals_torch(model: torch.nn.Module, npz: Path, seed: int):
    codes = tuple(np.random.default_rng(seed).integers(0, 128, 16).tolist())
    grid = model._vq_vae._embedding[list(codes)].reshape(1, 4, 4, 512).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = model.decoder(grid)[0, 0].numpy()
    mask = MaskDecoder.load(npz).decode(codes)
    assert mask.dtype == np.float32
    assert expected.std() > 0.1  # the mask depends on the codes, not only on the last bias
    np.testing.assert_allclose(mask, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("codes", [(), (1,) * 15, (1,) * 17, (128, *(0,) * 15), (-1, *(0,) * 15)])
def test_invalid_codes_are_rejected(npz: Path, codes: tuple[int, ...]):
    with pytest.raises(GemwrightError, match="16 codes"):
        MaskDecoder.load(npz).decode(codes)


def test_a_compressed_file_of_half_precision_is_read(arrays: dict[str, NDArray[Any]], tmp_path: Path):
    stored = {name: value.astype("<f2") for name, value in arrays.items()}
    loaded = MaskDecoder.load(save(tmp_path / "a.npz", stored, compressed=True)).arrays
    for name, value in stored.items():
        assert loaded[name].dtype == np.float32
        np.testing.assert_array_equal(loaded[name], value.astype(np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder.4.bias": None}, "array decoder.4.bias is missing"),
        ({"decoder.8.weight": np.zeros((32, 64, 4, 4), "f4")}, r"decoder.8.weight has shape \[32, 64, 4, 4\], not"),
        ({"decoder.0.bias": np.zeros(128, "i4")}, "decoder.0.bias' is not a plain array of floats"),
        ({"decoder.0.bias": np.array([{}] * 128, object)}, "decoder.0.bias' is not a plain array of floats"),
        ({"decoder.0.bias": np.zeros(128, ">f4")}, "decoder.0.bias' is not a plain array of floats"),
        ({"_vq_vae._embedding": np.zeros((512, 128), "f4")}, "_vq_vae._embedding has shape"),
    ],
)
def test_another_layout_is_rejected(
    arrays: dict[str, NDArray[Any]], tmp_path: Path, change: dict[str, Any], message: str
):
    changed = {name: value for name, value in (arrays | change).items() if value is not None}
    with pytest.raises(CheckpointError, match=message):
        MaskDecoder.load(save(tmp_path / "a.npz", changed))


def test_a_missing_file_and_another_format_are_rejected(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"cannot be read \(No such file"):
        MaskDecoder.load(tmp_path / "missing.npz")
    with pytest.raises(CheckpointError, match=r"cannot be read \(Is a directory"):
        MaskDecoder.load(tmp_path)
    (tmp_path / "a.npz").write_bytes(b"GIF89a" * 100)
    with pytest.raises(CheckpointError, match="is not a zip"):
        MaskDecoder.load(tmp_path / "a.npz")


def test_a_damaged_file_is_rejected(arrays: dict[str, NDArray[Any]], tmp_path: Path):
    # Constant weights compress to a few kilobytes, so that most changes affect the structure of the file.
    small = {name: np.full_like(value, 0.5) for name, value in arrays.items()}
    whole = save(tmp_path / "a.npz", small, compressed=True).read_bytes()
    rng = random.Random(0)
    outcomes: collections.Counter[bool] = collections.Counter()
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        (tmp_path / "b.npz").write_bytes(data[: rng.choice([len(data)] * 4 + [rng.randrange(len(data))])])
        try:
            MaskDecoder.load(tmp_path / "b.npz")
            outcomes[True] += 1
        except CheckpointError as error:
            assert str(error).startswith(str(tmp_path))  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
            outcomes[False] += 1
    assert outcomes[False] > 75


def blob(seed: int) -> NDArray[np.float32]:
    noise = torch.randn(1, 1, 9, 9, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(noise, (64, 64), mode="bicubic")
    return smooth[0, 0].numpy()


@pytest.mark.parametrize("size", [(300, 400), (64, 64), (31, 190), (7, 5), (1, 1)])
def test_a_placed_mask_is_torchs_bilinear_resize(size: tuple[int, int]):
    mask = blob(sum(size))
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(mask)[None, None], size, mode="bilinear", antialias=True, align_corners=False
    )[0, 0].numpy()
    placed = place(mask, ALL, *size)
    assert placed.dtype == np.bool_
    clear = np.abs(resized) > 1e-5  # closer to the threshold, float32 may round to either side
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(placed[clear], (resized > 0)[clear])


def test_a_mask_stays_in_its_box():
    full = np.ones((64, 64), np.float32)
    placed = place(full, Box(0.25, 0.5, 0.75, 1.0), 100, 60)
    expected = np.zeros((100, 60), np.bool_)
    expected[25:75, 30:60] = True
    np.testing.assert_array_equal(placed, expected)
    assert not place(full, Box(0.5, 0.0, 0.5, 1.0), 100, 60).any()
    assert not place(-full, ALL, 100, 60).any()


def test_a_mask_is_upright():
    upper_left = np.full((64, 64), -1.0, np.float32)
    upper_left[:32, :16] = 1.0
    placed = place(upper_left, ALL, 128, 128)
    assert placed[10, 10]
    assert placed[50, 20]
    assert not placed[20, 50]
    assert not placed[100, 10]
