"""A config whose layers are alike, some of them local, as configuration files describe a model.

A `Config` has separate numbers for each layer, files have not. `UniformConfig` is the step between `Config` and each
file format.
"""

from dataclasses import dataclass

from gemwright.checkpoint.configs.reader import cannot_write
from gemwright.errors import CheckpointError
from gemwright.families import GEMMA_1, GEMMA_3, Family, find_family
from gemwright.model.config import Attention, Config, Layer, Mlp, Rope


@dataclass(frozen=True)
class UniformConfig:
    """A model whose layers are alike, except that local layers have a window and a rotary embedding of their own."""

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

    def to_config(self) -> Config:
        """Return the config with each layer."""
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


def to_uniform(config: Config) -> UniformConfig:
    """Return the model as files describe it. If no layer is local, or every layer is, both ropes are the same.

    Raises:
        CheckpointError: The layers differ in more than window and rotary embedding.
    """
    mixers = [layer.mixer for layer in config.layers if isinstance(layer.mixer, Attention)]
    if not mixers or len(mixers) < len(config.layers):
        raise cannot_write("it has a layer without attention" if config.layers else "it has no layers")
    first, layer = mixers[0], config.layers[0]
    local = [mixer for mixer in mixers if mixer.window is not None]
    full = [mixer for mixer in mixers if mixer.window is None]
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
        local_rope=(local or full)[0].rope,
        global_rope=(full or local)[0].rope,
        soft_cap=first.soft_cap,
        final_soft_cap=config.final_soft_cap,
        qk_norm=first.qk_norm,
        post_norms=layer.post_norms,
        tied=config.tied,
        norm_eps=config.norm_eps,
    )
    if model.to_config() != config:
        raise cannot_write("its layers differ in more than window and rotary embedding, or have biases")
    return model


def find_architecture(model: UniformConfig) -> Family:
    """Return the family whose published architecture computes the same as a model.

    Raises:
        CheckpointError: There is none.
    """
    family = find_family(model.to_config())
    if family is GEMMA_3 and not model.post_norms:
        raise cannot_write("no published architecture has query and key norms without post norms")
    if family is GEMMA_3 and model.soft_cap is not None:
        raise cannot_write("Gemma 3 has no soft-cap on attention scores")
    beyond_gemma1 = any(model.local) or model.final_soft_cap or model.query_scalar != model.head_dim
    if family is GEMMA_1 and beyond_gemma1:
        raise cannot_write("without post norms it is a Gemma 1, which has no window, soft-cap or query scale")
    return family


def find_period(local: tuple[bool, ...]) -> int | None:
    """Return p if every p-th layer is global and all others are local, or None if there is no such number."""
    period = local.index(False) + 1 if False in local else len(local) + 1
    return period if local == local_layers(period, len(local)) else None


def local_layers(period: int, depth: int) -> tuple[bool, ...]:
    """Return whether each of `depth` layers is local if every `period`-th is global."""
    return tuple((i + 1) % period != 0 for i in range(depth))


def check_config(model: UniformConfig, where: str) -> Config:
    """Check that the numbers of a model are consistent and return its config.

    Raises:
        CheckpointError: They are not.
    """
    check_heads(model.heads, model.kv_heads, model.head_dim, where)
    return model.to_config()


def check_heads(heads: int, kv_heads: int, head_dim: int, where: str) -> None:
    """Check that query heads share key/value heads evenly and have an even width, which can be rotated.

    Raises:
        CheckpointError: They do not.
    """
    if heads % kv_heads:
        raise CheckpointError(
            f"{where}: {heads} query heads cannot share {kv_heads} key/value heads evenly; "
            "correct the file or download it again."
        )
    if head_dim % 2:
        raise CheckpointError(
            f"{where}: the head width {head_dim} is odd, and rotary embeddings need an even one; "
            "correct the file or download it again."
        )
