"""All published variants: shapes, parameter counts and names on the hub. A new variant is one row of `VARIANTS`.

Shapes: the tables of google/gemma_pytorch `gemma/config.py` and google-deepmind/gemma `gemma/gm/nn/_gemma.py`
(Gemma 1: `gemma/transformer.py` of the 2.0.8 wheel), google-deepmind/recurrentgemma `common.py`, google-research/
big_vision `models/ppp/gemma.py`. Parameter counts: KerasHub's presets; RecurrentGemma's follow from its tensors. Names:
the hub's.
"""

from dataclasses import dataclass, replace

from gemwright.model.config import Attention, Config, Layer, Mlp, Recurrent, Rope, Vision, pattern


@dataclass(frozen=True)
class Variant:
    """A published shape.

    Attributes:
        family: Name of its family, see `gemwright.families`.
        config: The shape.
        parameters: The published parameter count, with a tied embedding counted once.
        checkpoints: Names on the hub, in the organization `google`.
    """

    family: str
    config: Config
    parameters: int
    checkpoints: tuple[str, ...]


def _gemma1(*, width: int, depth: int, heads: int, kv_heads: int, hidden: int) -> Config:
    mixer = Attention(heads, kv_heads, head_dim=256, query_scalar=256)
    return Config(width, 256_000, pattern(depth, Layer(mixer, Mlp(hidden))), max_length=8192)


def _gemma2(
    *,
    width: int,
    depth: int,
    heads: int,
    kv_heads: int,
    head_dim: int = 256,
    query_scalar: float = 256,
    hidden: int,
) -> Config:
    full = Attention(heads, kv_heads, head_dim, query_scalar, soft_cap=50.0)
    local = replace(full, window=4096)
    kinds = [Layer(mixer, Mlp(hidden), post_norms=True) for mixer in (local, full)]
    return Config(width, 256_000, pattern(depth, *kinds), max_length=8192, final_soft_cap=30.0)


def _vaultgemma(*, width: int, depth: int, heads: int, hidden: int) -> Config:
    mixer = Attention(heads, heads, head_dim=256, query_scalar=256, soft_cap=50.0)
    return Config(width, 256_000, pattern(depth, Layer(mixer, Mlp(hidden))), max_length=1024, final_soft_cap=30.0)


def _gemma3(
    *,
    width: int,
    depth: int,
    heads: int,
    kv_heads: int,
    hidden: int,
    head_dim: int = 256,
    query_scalar: float = 256,
    window: int = 1024,
    rope_scale: float = 8.0,
    max_length: int = 131_072,
) -> Config:
    full = Attention(heads, kv_heads, head_dim, query_scalar, rope=Rope(1_000_000.0, rope_scale), qk_norm=True)
    local = replace(full, window=window, rope=Rope(10_000.0))
    kinds = [Layer(mixer, Mlp(hidden), post_norms=True) for mixer in (*[local] * 5, full)]
    return Config(width, 262_144, pattern(depth, *kinds), max_length)


def _recurrent(*, width: int, depth: int, heads: int, embed_scale: float) -> Config:
    mlp = Mlp(3 * width, bias=True)
    # A token attends to itself and the 2048 before it.
    attention = Attention(heads, 1, 256, 256, rope=Rope(fraction=0.5), window=2049, out_bias=True)
    recurrent = Layer(Recurrent(width, blocks=heads), mlp)
    return Config(
        width,
        256_000,
        pattern(depth, recurrent, recurrent, Layer(attention, mlp)),
        max_length=2**31 - 1,  # its state does not grow; positions are int32
        final_soft_cap=30.0,
        embed_scale=embed_scale,  # sqrt(width) rounded to bfloat16, in every dtype
    )


def _paligemma(decoder: Config, image_size: int) -> Config:
    """Add a tower, and 1024 location and 128 segmentation tokens to the vocabulary."""
    vision = Vision(image_size, (image_size // 14) ** 2, projector="affine")
    return replace(decoder, vocab=257_152, vision=vision)


def _gemma3_vision(decoder: Config) -> Config:
    return replace(decoder, vision=Vision(896, 256, projector="normed"))


GEMMA_2B = _gemma1(width=2048, depth=18, heads=8, kv_heads=1, hidden=16_384)
GEMMA_7B = _gemma1(width=3072, depth=28, heads=16, kv_heads=16, hidden=24_576)
GEMMA_2_2B = _gemma2(width=2304, depth=26, heads=8, kv_heads=4, hidden=9216)
GEMMA_2_9B = _gemma2(width=3584, depth=42, heads=16, kv_heads=8, hidden=14_336)
GEMMA_2_27B = _gemma2(width=4608, depth=46, heads=32, kv_heads=16, head_dim=128, query_scalar=144, hidden=36_864)
GEMMA_3_270M = _gemma3(
    width=640, depth=18, heads=4, kv_heads=1, hidden=2048, window=512, rope_scale=1.0, max_length=32_768
)
GEMMA_3_1B = _gemma3(
    width=1152, depth=26, heads=4, kv_heads=1, hidden=6912, window=512, rope_scale=1.0, max_length=32_768
)
GEMMA_3_4B = _gemma3(width=2560, depth=34, heads=8, kv_heads=4, hidden=10_240)
GEMMA_3_12B = _gemma3(width=3840, depth=48, heads=16, kv_heads=8, hidden=15_360)
GEMMA_3_27B = _gemma3(width=5376, depth=62, heads=32, kv_heads=16, head_dim=128, query_scalar=168, hidden=21_504)
RECURRENT_2B = _recurrent(width=2560, depth=26, heads=10, embed_scale=50.5)
RECURRENT_9B = _recurrent(width=4096, depth=38, heads=16, embed_scale=64.0)

VARIANTS: dict[str, Variant] = {
    "gemma-2b": Variant("Gemma 1", GEMMA_2B, 2_506_172_416, ("gemma-2b", "gemma-2b-it", "gemma-1.1-2b-it")),
    "gemma-7b": Variant("Gemma 1", GEMMA_7B, 8_537_680_896, ("gemma-7b", "gemma-7b-it", "gemma-1.1-7b-it")),
    "codegemma-2b": Variant("CodeGemma", GEMMA_2B, 2_506_172_416, ("codegemma-2b", "codegemma-1.1-2b")),
    "codegemma-7b": Variant(
        "CodeGemma", GEMMA_7B, 8_537_680_896, ("codegemma-7b", "codegemma-7b-it", "codegemma-1.1-7b-it")
    ),
    "gemma-2-2b": Variant("Gemma 2", GEMMA_2_2B, 2_614_341_888, ("gemma-2-2b", "gemma-2-2b-it")),
    "gemma-2-9b": Variant("Gemma 2", GEMMA_2_9B, 9_241_705_984, ("gemma-2-9b", "gemma-2-9b-it")),
    "gemma-2-27b": Variant("Gemma 2", GEMMA_2_27B, 27_227_128_320, ("gemma-2-27b", "gemma-2-27b-it")),
    "vaultgemma-1b": Variant(
        "VaultGemma",
        _vaultgemma(width=1152, depth=26, heads=4, hidden=6912),
        1_038_741_120,
        ("vaultgemma-1b",),
    ),
    "gemma-3-270m": Variant("Gemma 3", GEMMA_3_270M, 268_098_176, ("gemma-3-270m", "gemma-3-270m-it")),
    "gemma-3-1b": Variant("Gemma 3", GEMMA_3_1B, 999_885_952, ("gemma-3-1b-pt", "gemma-3-1b-it")),
    "gemma-3-4b": Variant("Gemma 3", _gemma3_vision(GEMMA_3_4B), 4_299_915_632, ("gemma-3-4b-pt", "gemma-3-4b-it")),
    "gemma-3-12b": Variant(
        "Gemma 3", _gemma3_vision(GEMMA_3_12B), 12_187_079_280, ("gemma-3-12b-pt", "gemma-3-12b-it")
    ),
    "gemma-3-27b": Variant(
        "Gemma 3", _gemma3_vision(GEMMA_3_27B), 27_432_062_576, ("gemma-3-27b-pt", "gemma-3-27b-it")
    ),
    "recurrentgemma-2b": Variant(
        "RecurrentGemma", RECURRENT_2B, 2_682_862_080, ("recurrentgemma-2b", "recurrentgemma-2b-it")
    ),
    "recurrentgemma-9b": Variant(
        "RecurrentGemma", RECURRENT_9B, 8_579_977_216, ("recurrentgemma-9b", "recurrentgemma-9b-it")
    ),
    "paligemma-3b-224": Variant(
        "PaliGemma", _paligemma(GEMMA_2B, 224), 2_923_335_408, ("paligemma-3b-pt-224", "paligemma-3b-mix-224")
    ),
    "paligemma-3b-448": Variant(
        "PaliGemma", _paligemma(GEMMA_2B, 448), 2_924_220_144, ("paligemma-3b-pt-448", "paligemma-3b-mix-448")
    ),
    "paligemma-3b-896": Variant("PaliGemma", _paligemma(GEMMA_2B, 896), 2_927_759_088, ("paligemma-3b-pt-896",)),
    "paligemma2-3b-224": Variant(
        "PaliGemma 2", _paligemma(GEMMA_2_2B, 224), 3_032_094_960, ("paligemma2-3b-pt-224", "paligemma2-3b-mix-224")
    ),
    "paligemma2-3b-448": Variant(
        "PaliGemma 2",
        _paligemma(GEMMA_2_2B, 448),
        3_032_979_696,
        ("paligemma2-3b-pt-448", "paligemma2-3b-mix-448", "paligemma2-3b-ft-docci-448"),
    ),
    "paligemma2-3b-896": Variant("PaliGemma 2", _paligemma(GEMMA_2_2B, 896), 3_036_518_640, ("paligemma2-3b-pt-896",)),
    "paligemma2-10b-224": Variant(
        "PaliGemma 2", _paligemma(GEMMA_2_9B, 224), 9_662_409_456, ("paligemma2-10b-pt-224", "paligemma2-10b-mix-224")
    ),
    "paligemma2-10b-448": Variant(
        "PaliGemma 2",
        _paligemma(GEMMA_2_9B, 448),
        9_663_294_192,
        ("paligemma2-10b-pt-448", "paligemma2-10b-mix-448", "paligemma2-10b-ft-docci-448"),
    ),
    "paligemma2-10b-896": Variant(
        "PaliGemma 2", _paligemma(GEMMA_2_9B, 896), 9_666_833_136, ("paligemma2-10b-pt-896",)
    ),
    "paligemma2-28b-224": Variant(
        "PaliGemma 2", _paligemma(GEMMA_2_27B, 224), 27_650_192_112, ("paligemma2-28b-pt-224", "paligemma2-28b-mix-224")
    ),
    "paligemma2-28b-448": Variant(
        "PaliGemma 2", _paligemma(GEMMA_2_27B, 448), 27_651_076_848, ("paligemma2-28b-pt-448", "paligemma2-28b-mix-448")
    ),
    "paligemma2-28b-896": Variant(
        "PaliGemma 2", _paligemma(GEMMA_2_27B, 896), 27_654_615_792, ("paligemma2-28b-pt-896",)
    ),
}
