"""Compare what a checkpoint describes with the published definitions: name, shape, parameters, vocabulary, template."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace

from gemwright.checkpoint.chat_templates import SPECIAL_TOKENS
from gemwright.checkpoint.open import Checkpoint
from gemwright.errors import GemwrightError
from gemwright.families import FAMILIES, Family
from gemwright.loading.model import make_chat_template
from gemwright.model.config import Config
from gemwright.model.differences import differences as config_differences
from gemwright.model.params import parameter_count
from gemwright.release.verify.report import Check, passes, some
from gemwright.text.chat import FORMATS
from gemwright.text.chat_template import ChatTemplate
from gemwright.text.tokenizer import Tokenizer
from gemwright.text.vocabulary import INFILL_SLOTS, Vocabulary
from gemwright.variants import VARIANTS

MAX_PADDING_ROWS = 1024
"""Maximum number of rows of an embedding beyond the published vocabulary: padding, and tokens of a fine-tune."""
CONVERSATION = (
    {"role": "user", "content": "Name a gem."},
    {"role": "assistant", "content": "Ruby."},
    {"role": "user", "content": "And another?"},
)
"""The conversation that a chat template is tried with."""


def published_names() -> dict[str, str]:
    """Return the variant of each published checkpoint, by its name."""
    listed = {name: name for name in VARIANTS}
    return listed | {name: variant for variant, row in VARIANTS.items() for name in row.checkpoints}


def named_checkpoint(checkpoint: Checkpoint) -> str | None:
    """Return the published checkpoint that a file or folder, or its metadata, is named after; None if there is none."""
    path, metadata = checkpoint.path.absolute(), getattr(checkpoint.file, "metadata", {})
    places = [path.name, str(metadata.get("general.name", "")), path.parent.name]
    if path.parent.name == "snapshots":  # models--google--gemma-3-1b-it/snapshots/COMMIT
        places.append(path.parent.parent.name)
    names = sorted(published_names(), key=len, reverse=True)
    for place in places:
        text = re.sub(r"[\s_]+", "-", place.lower())
        for name in names:
            if re.search(rf"(?<![a-z0-9]){re.escape(name)}(?![a-z0-9])", text):
                return name
    return None


def choose_variant(checkpoint: Checkpoint, named: str | None) -> str:
    """Return the published variant to compare with: that of the name, else the one of the same or the nearest shape."""
    if named is not None:
        return published_names()[named]
    same = [name for name, row in VARIANTS.items() if row.family == checkpoint.family.name] or list(VARIANTS)
    return min(same, key=lambda name: len(list(differences(checkpoint.config, VARIANTS[name].config))))


def differences(found: Config, published: Config) -> Iterator[str]:
    """Yield what differs from a published config; padding of the embedding and a lacking vision tower do not count."""
    if published.vocab <= found.vocab <= published.vocab + MAX_PADDING_ROWS:
        found = replace(found, vocab=published.vocab)
    yield from config_differences(found, published if found.vision else replace(published, vision=None))


def check_name(checkpoint: Checkpoint, named: str | None) -> Check:
    """Check that a checkpoint named after a published one has its shape."""
    if named is None:
        return Check("name", "skipped", "it is not named after a published model")
    variant = published_names()[named]
    changed = list(differences(checkpoint.config, VARIANTS[variant].config))
    if not changed:
        return passes("name", True, named)
    others = [name for name, row in VARIANTS.items() if not list(differences(checkpoint.config, row.config))]
    is_other = f"it is {' or '.join(others)}" if others else "it is no published variant"
    return passes("name", False, f"it is named {named}, and {is_other}")


def check_shape(checkpoint: Checkpoint, variant: str) -> Check:
    """Check the config against that of a published variant."""
    published, config = VARIANTS[variant], checkpoint.config
    if changed := list(differences(config, published.config)):
        return passes("shape", False, f"unlike {variant}, it has {some(changed, 5)}", differences=len(changed))
    bare = ", without its vision tower" if published.config.vision and config.vision is None else ""
    rows = config.vocab - published.config.vocab
    extra = f", {rows} more rows of the embedding" if rows else ""
    return passes("shape", True, f"{variant}{bare}: {len(config.layers)} layers of width {config.width}{extra}")


def check_parameters(checkpoint: Checkpoint, variant: str) -> Check:
    """Check the number of parameters, without padding rows of the vocabulary."""
    published, config = VARIANTS[variant], checkpoint.config
    expected = published.parameters
    if published.config.vision and config.vision is None:
        expected = parameter_count(replace(published.config, vision=None))
    rows = config.vocab - published.config.vocab
    count = parameter_count(config) - rows * config.width * (1 if config.tied else 2)
    detail = f"{count:,}" if count == expected else f"{count:,} instead of {expected:,}"
    return passes("parameters", count == expected, detail, found=count, published=expected)


def check_tokens(vocabulary: Vocabulary, family: Family, named: str | None) -> Iterator[Check]:
    """Check the special tokens and the pieces of a vocabulary."""
    published = family.vocabulary
    special = dict(published.special)
    if named is not None and named.startswith("codegemma") and not named.endswith("-it"):
        special |= {names[0]: token for token, names in INFILL_SLOTS.items()}
    found = {name: vocabulary.pieces[token] if token < vocabulary.size else None for name, token in special.items()}
    aliases = {names[0]: names for names in INFILL_SLOTS.values()}
    wrong = [
        f"id {special[name]} is {'missing' if piece is None else repr(piece)} instead of {name}"
        for name, piece in found.items()
        if piece not in aliases.get(name, (name,))
    ]
    listed = ", ".join(f"{name} {token}" for name, token in special.items())
    yield passes("special tokens", not wrong, some(wrong, 5) if wrong else listed)
    start, stop = published.text
    digest = hashlib.sha256("".join(f"{piece}\n" for piece in vocabulary.pieces[start:stop]).encode()).hexdigest()
    same = digest == published.digest
    pieces = f"{vocabulary.size:,} tokens; the text of ids {start:,} to {stop - 1:,} is"
    yield passes("vocabulary", same, f"{pieces} {'as' if same else 'not as'} published for {family.name}")


def check_template(checkpoint: Checkpoint, tokenizer: Tokenizer, named: str | None) -> Check:
    """Check that the chat template writes a conversation as the family's format does."""
    tuned = named is not None and named.endswith("-it")
    if not checkpoint.chat_templates:
        if tuned:
            return passes("template", False, f"there is no chat template, and {named} has one")
        return Check("template", "skipped", "there is no chat template, as in pretrained models")
    format_ = FORMATS[checkpoint.family.chat_format]
    expected = ChatTemplate(tokenizer, {"default": format_.template}, SPECIAL_TOKENS)
    try:
        ids = make_chat_template(checkpoint, tokenizer).encode(CONVERSATION)
    except GemwrightError as error:
        return passes("template", False, f"the chat template refuses a conversation: {error}")
    wanted = expected.encode(CONVERSATION)
    if ids == wanted:
        return passes("template", True, f"a conversation of three turns becomes {len(ids)} ids, as published")
    at = next((i for i, pair in enumerate(zip(ids, wanted, strict=False)) if pair[0] != pair[1]), -1)
    shown = [tokenizer.decode([*part], keep_control=True) for part in (ids, wanted)]
    return passes("template", False, f"a conversation becomes {shown[0]!r:.300} instead of {shown[1]!r:.300}", at=at)


def check_stops(checkpoint: Checkpoint, vocabulary: Vocabulary) -> Check:
    """Check that the ids that end a text are those of special tokens."""
    family, pieces = checkpoint.family, vocabulary.pieces
    known = {"<eos>", "<end_of_turn>", *(names[0] for names in INFILL_SLOTS.values())}
    stops = {token: pieces[token] if token < len(pieces) else "missing" for token in checkpoint.stop_ids}
    if not stops:
        return Check("stop tokens", "skipped", f"the checkpoint names none; <eos> ends a text of {family.name}")
    listed = ", ".join(f"{piece} {token}" for token, piece in stops.items())
    wrong = [piece for piece in stops.values() if piece not in known]
    return passes("stop tokens", not wrong, f"{listed}, of which {some(wrong)} end no text" if wrong else listed)


def find_published_family(variant: str) -> Family:
    """Return the family of a published variant."""
    return next(family for family in FAMILIES if family.name == VARIANTS[variant].family)
