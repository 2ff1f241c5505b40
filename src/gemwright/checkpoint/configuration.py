"""What every configuration file can say about a model, and how its untrusted keys are read.

A `Config` gives each layer its own numbers; the files know only layers that are alike, some of them local. `Uniform`
is that description. It stands between `Config` and each file format, and becomes a `Config` in one way only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gemwright.errors import CheckpointError
from gemwright.model.config import Attention, Config, Layer, Mlp, Rope

MAX_LAYERS = 1024
MAX_SIZE = 1 << 24
"""Largest width, number of heads, vocabulary and the like that is believed."""
MAX_POSITIONS = (1 << 31) - 1
"""Largest context and window: positions are int32."""
MAX_NUMBER = 1e30
"""Positive real numbers must lie between 1 / MAX_NUMBER and this, well inside float32."""

Architecture = Literal["gemma", "gemma2", "gemma3"]


@dataclass(frozen=True)
class Uniform:
    """A model whose layers are alike, but that some are local, with one window and a rotary embedding of their own."""

    width: int
    vocab: int
    context: int
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
            self.context,
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


def uniform(config: Config) -> Uniform:
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
    model = Uniform(
        width=config.width,
        vocab=config.vocab,
        context=config.context,
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


def architecture(model: Uniform) -> Architecture:
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


def checked(model: Uniform, where: str) -> Config:
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


def cannot_write(why: str) -> CheckpointError:
    """The error for a model that a format cannot describe."""
    return CheckpointError(f"This model cannot be written in the chosen format: {why}.")


@dataclass(frozen=True)
class Keys:
    """The keys of an untrusted file; every value is checked as it is read.

    Attributes:
        data: The keys. A key whose value is null counts as present.
        where: The file, for messages.
        prefix: What stands before each key in messages.
    """

    data: Mapping[str, Any]
    where: str
    prefix: str = ""

    def size(self, key: str, default: int | None = None, *, least: int = 1, most: int = MAX_SIZE) -> int:
        """A whole number; the key is required where there is no default."""
        value = self.data.get(key, default)
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        raise self.error(key, f"a whole number from {least} to {most}")

    def number(
        self, key: str, default: float | None = None, *, least: float = 1 / MAX_NUMBER, most: float = MAX_NUMBER
    ) -> float:
        """A positive number; the key is required where there is no default."""
        value = self.data.get(key, default)
        if isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most:
            return float(value)  # NaN fails both comparisons
        raise self.error(key, f"a number from {least} to {most}")

    def optional_number(self, key: str, default: float | None = None) -> float | None:
        """A positive number, or None for null."""
        return None if self.data.get(key, default) is None else self.number(key, default)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.data.get(key, default)
        if isinstance(value, bool):
            return value
        raise self.error(key, "true or false")

    def choice(self, key: str, *choices: Any) -> Any:
        """One of a few values, the first of which is the default."""
        value = self.data.get(key, choices[0])
        # 1 == True: the types must agree too.
        if any(type(value) is type(choice) and value == choice for choice in choices):
            return value
        raise self.error(key, " or ".join("null" if choice is None else repr(choice) for choice in choices))

    def mapping(self, key: str, *known: str) -> "Keys":
        """A group of keys, empty where it is absent or null; keys that are not `known` are refused."""
        value = self.data.get(key)
        if value is None:
            value = {}
        group = Keys(value, self.where, f"{self.prefix}{key}.")
        if not isinstance(value, Mapping):
            raise self.error(key, "a group of keys")
        for other in value:
            if known and other not in known:
                raise group.error(other, f"absent, as only {', '.join(known)} are understood there")
        return group

    def error(self, key: str, wanted: str) -> CheckpointError:
        """The error for a key that is missing or holds what it must not."""
        found = _shown(self.data[key]) if key in self.data else "missing"
        return CheckpointError(
            f"{self.where}: key '{self.prefix}{key:.80}' is {found}, and it must be {wanted}; "
            "correct the file or fetch it again."
        )


def _shown(value: Any) -> str:
    """A value for a message: never long, whatever it is."""
    match value:
        case None:
            return "null"
        case bool() | float():
            return repr(value).lower()
        case int():
            return str(value) if abs(value) < 10**30 else "a number of more than 30 digits"
        case str():
            return repr(value[:40])
        case _:
            return f"of type {type(value).__name__}"
