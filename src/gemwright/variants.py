"""Every published variant: what it is and where its weights are published.

Shapes: the tables of google/gemma_pytorch `gemma/config.py` and google-deepmind/gemma `gemma/gm/nn/_gemma.py`
(Gemma 1: `gemma/transformer.py` of the 2.0.8 wheel). Parameter counts: KerasHub's presets. Names: the hub.
"""

from dataclasses import dataclass, replace

from gemwright.model.config import Attention, Config, Layer, Mlp, Rope, pattern


@dataclass(frozen=True)
class Variant:
    """A published model: its shape, its published parameter count (a tied embedding counted once), its names."""

    family: str
    config: Config
    parameters: int
    checkpoints: tuple[str, ...]
    """Names on the hub, under the organisation `google`."""


def _gemma1(*, width: int, depth: int, heads: int, kv_heads: int, hidden: int) -> Config:
    mixer = Attention(heads, kv_heads, head_dim=256, query_scalar=256)
    return Config(width, 256_000, pattern(depth, Layer(mixer, Mlp(hidden))), context=8192)


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
    everything = Attention(heads, kv_heads, head_dim, query_scalar, soft_cap=50.0)
    local = replace(everything, window=4096)
    kinds = [Layer(mixer, Mlp(hidden), post_norms=True) for mixer in (local, everything)]
    return Config(width, 256_000, pattern(depth, *kinds), context=8192, final_soft_cap=30.0)


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
    context: int = 131_072,
) -> Config:
    everything = Attention(heads, kv_heads, head_dim, query_scalar, rope=Rope(1_000_000.0, rope_scale), qk_norm=True)
    local = replace(everything, window=window, rope=Rope(10_000.0))
    kinds = [Layer(mixer, Mlp(hidden), post_norms=True) for mixer in (*[local] * 5, everything)]
    return Config(width, 262_144, pattern(depth, *kinds), context)


GEMMA_2B = _gemma1(width=2048, depth=18, heads=8, kv_heads=1, hidden=16_384)
GEMMA_7B = _gemma1(width=3072, depth=28, heads=16, kv_heads=16, hidden=24_576)
GEMMA_2_2B = _gemma2(width=2304, depth=26, heads=8, kv_heads=4, hidden=9216)
GEMMA_2_9B = _gemma2(width=3584, depth=42, heads=16, kv_heads=8, hidden=14_336)
GEMMA_2_27B = _gemma2(width=4608, depth=46, heads=32, kv_heads=16, head_dim=128, query_scalar=144, hidden=36_864)
GEMMA_3_270M = _gemma3(
    width=640, depth=18, heads=4, kv_heads=1, hidden=2048, window=512, rope_scale=1.0, context=32_768
)
GEMMA_3_1B = _gemma3(width=1152, depth=26, heads=4, kv_heads=1, hidden=6912, window=512, rope_scale=1.0, context=32_768)
GEMMA_3_4B = _gemma3(width=2560, depth=34, heads=8, kv_heads=4, hidden=10_240)
GEMMA_3_12B = _gemma3(width=3840, depth=48, heads=16, kv_heads=8, hidden=15_360)
GEMMA_3_27B = _gemma3(width=5376, depth=62, heads=32, kv_heads=16, head_dim=128, query_scalar=168, hidden=21_504)

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
    "gemma-3-270m": Variant("Gemma 3", GEMMA_3_270M, 268_098_176, ("gemma-3-270m", "gemma-3-270m-it")),
    "gemma-3-1b": Variant("Gemma 3", GEMMA_3_1B, 999_885_952, ("gemma-3-1b-pt", "gemma-3-1b-it")),
    "gemma-3-4b": Variant("Gemma 3 (text)", GEMMA_3_4B, 3_880_099_328, ("gemma-3-4b-pt", "gemma-3-4b-it")),
    "gemma-3-12b": Variant("Gemma 3 (text)", GEMMA_3_12B, 11_765_788_416, ("gemma-3-12b-pt", "gemma-3-12b-it")),
    "gemma-3-27b": Variant("Gemma 3 (text)", GEMMA_3_27B, 27_009_002_240, ("gemma-3-27b-pt", "gemma-3-27b-it")),
}
