"""The description of a model that configuration files share: layers that are alike, some of them local.

A `Config` gives each layer its own numbers, which the files cannot. `UniformConfig` is between `Config` and each file
format, and becomes a `Config` in one way only.
"""

from dataclasses import dataclass
from typing import Literal

from gemwright.checkpoint.configs.reader import cannot_write
from gemwright.errors import CheckpointError
from gemwright.model.config import Attention, Config, Layer, Mlp, Rope

Architecture = Literal["gemma", "gemma2", "gemma3"]


@dataclass(frozen=True)
class UniformConfig:
    """A model whose layers are alike, but that some are local, with one window and a rotary embedding of their own."""

    width: int
    vocab: int
    max_length: int
    heads: int
    kv_heads: int
    head_dim: int
    query_scalar: float
    hidden: int
    local: tuple[bool, ...]
    window: int | None
    local_rope: Rope
    global_rope: Rope
    soft_cap: float | None
    final_soft_cap: float | None
    qk_norm: bool
    post_norms: bool
    tied: bool
    norm_eps: float

    def config(self) -> Config:
        """The model, layer by layer."""
        return Config(
            self.width,
            self.vocab,
            tuple(Layer(self._mixer(local), Mlp(self.hidden), self.post_norms) for local in self.local),
            self.max_length,
            self.final_soft_cap,
            self.tied,
            self.norm_eps,
        )

    def _mixer(self, local: bool) -> Attention:
        return Attention(
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.query_scalar,
            self.local_rope if local else self.global_rope,
            self.window if local else None,
            self.soft_cap,
            self.qk_norm,
        )


def uniform(config: Config) -> UniformConfig:
    """The same model as its files describe it. Where no layer is local, or every layer, both ropes are the one.

    Raises:
        CheckpointError: The layers differ in more than window and rotary embedding.
    """
    mixers = [layer.mixer for layer in config.layers if isinstance(layer.mixer, Attention)]
    if not mixers or len(mixers) < len(config.layers):
        raise cannot_write("it has a layer without attention" if config.layers else "it has no layers")
    first, layer = mixers[0], config.layers[0]
    local = [mixer for mixer in mixers if mixer.window is not None]
    everywhere = [mixer for mixer in mixers if mixer.window is None]
    model = UniformConfig(
        width=config.width,
        vocab=config.vocab,
        max_length=config.max_length,
        heads=first.heads,
        kv_heads=first.kv_heads,
        head_dim=first.head_dim,
        query_scalar=first.query_scalar,
        hidden=layer.mlp.hidden,
        local=tuple(mixer.window is not None for mixer in mixers),
        window=local[0].window if local else None,
        local_rope=(local or everywhere)[0].rope,
        global_rope=(everywhere or local)[0].rope,
        soft_cap=first.soft_cap,
        final_soft_cap=config.final_soft_cap,
        qk_norm=first.qk_norm,
        post_norms=layer.post_norms,
        tied=config.tied,
        norm_eps=config.norm_eps,
    )
    if model.config() != config:
        raise cannot_write("its layers differ in more than window and rotary embedding, or have biases")
    return model


def architecture(model: UniformConfig) -> Architecture:
    """The published architecture that computes what the model computes, known by its norms.

    Raises:
        CheckpointError: There is none.
    """
    if model.qk_norm and not model.post_norms:
        raise cannot_write("no published architecture has query and key norms without post norms")
    if model.qk_norm:
        if model.soft_cap is not None:
            raise cannot_write("Gemma 3 has no soft-cap on attention scores")
        return "gemma3"
    if model.post_norms:
        return "gemma2"
    if any(model.local) or model.soft_cap or model.final_soft_cap or model.query_scalar != model.head_dim:
        raise cannot_write("without post norms it is a Gemma 1, which has no window, soft-cap or query scale")
    return "gemma"


def period(local: tuple[bool, ...]) -> int | None:
    """The p for which every p-th layer is global and all others are local; None where there is no such number."""
    p = local.index(False) + 1 if False in local else len(local) + 1
    return p if local == every(p, len(local)) else None


def every(p: int, depth: int) -> tuple[bool, ...]:
    """Which of `depth` layers are local when every p-th is global."""
    return tuple((i + 1) % p != 0 for i in range(depth))


def checked(model: UniformConfig, where: str) -> Config:
    """The model's layers, once its numbers fit together.

    Raises:
        CheckpointError: They do not.
    """
    check_heads(model.heads, model.kv_heads, model.head_dim, where)
    return model.config()


def check_heads(heads: int, kv_heads: int, head_dim: int, where: str) -> None:
    """Raise unless query heads share key/value heads evenly and have a width that can be rotated.

    Raises:
        CheckpointError: They do not.
    """
    if heads % kv_heads:
        raise CheckpointError(
            f"{where}: {heads} query heads cannot share {kv_heads} key/value heads evenly; "
            "correct the file or fetch it again."
        )
    if head_dim % 2:
        raise CheckpointError(
            f"{where}: the head width {head_dim} is odd, and rotary embeddings turn pairs; "
            "correct the file or fetch it again."
        )
