"""Find the tokenizer of a checkpoint, load its vocabulary and add the tokens that its file lacks."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from gemwright.checkpoint.added_tokens import add_folder_tokens
from gemwright.checkpoint.files.formats import refuse_pointer
from gemwright.checkpoint.files.gguf import GgufFile
from gemwright.checkpoint.files.json_file import MAX_JSON_BYTES
from gemwright.checkpoint.files.orbax import OrbaxFolder
from gemwright.checkpoint.files.tensor_file import TensorFile
from gemwright.errors import CheckpointError
from gemwright.families import PALIGEMMA, find_family
from gemwright.model.config import Config
from gemwright.text.sentencepiece_model import CONTROL, USER_DEFINED
from gemwright.text.vocabulary import Vocabulary

MAX_EXTRA = 256
"""Maximum number of control tokens beyond the rows of an embedding table."""
MAX_PADDING = 1024
"""Maximum number of rows beyond the tokens: tables are padded to a multiple of 64, or of a power of two up to this."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "assets/tokenizer/vocabulary.spm")
"""Names of tokenizer files, in order of preference: fine-tuning may leave an old `tokenizer.model` in the folder."""


def load_vocabulary(path: Path, file: TensorFile, config: Config) -> Vocabulary:
    """Load the vocabulary of a checkpoint from its GGUF file, or from the tokenizer next to its weights.

    Args:
        path: The checkpoint, a file or a folder; or a folder with another tokenizer.
        file: The open weights.
        config: The model.

    Raises:
        CheckpointError: The tokenizer is missing, damaged, or that of another model.
    """
    gguf = file if isinstance(file, GgufFile) and not path.is_dir() else None
    source = path if gguf else find_tokenizer(path, file)
    with _named(source):
        vocabulary = Vocabulary.from_gguf(gguf.metadata) if gguf else _read_vocabulary(source)
    return _fit(vocabulary, config, source)


def read_tokenizer(file: Path, config: Config) -> Vocabulary:
    """Read the vocabulary of a tokenizer file for a model.

    Args:
        file: A `tokenizer.json`, or the `.model` file of SentencePiece.
        config: The model.

    Raises:
        CheckpointError: The tokenizer is missing, damaged, or that of another model.
    """
    with _named(file):
        refuse_pointer(file)
        vocabulary = _read_vocabulary(file)
    return _fit(vocabulary, config, file)


@contextmanager
def _named(source: Path) -> Generator[None]:
    """Name the file of a vocabulary in errors."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{source} cannot be read ({error.strerror}); check the path.") from error


def _fit(vocabulary: Vocabulary, config: Config, source: Path) -> Vocabulary:
    """Add the tokens that a family's tokenizer file lacks, and check that the vocabulary fits the model."""
    if find_family(config).added_pieces:
        vocabulary = add_location_tokens(vocabulary, config.vocab)
    check_vocabulary(config, vocabulary.size, lambda token: bool(vocabulary.kinds[token] == CONTROL), source)
    return vocabulary


def _read_vocabulary(source: Path) -> Vocabulary:
    if source.stat().st_size > MAX_JSON_BYTES:
        raise CheckpointError(f"the tokenizer is larger than {MAX_JSON_BYTES:,} bytes; fetch it again.")
    is_model = source.suffix in (".model", ".spm")
    read = Vocabulary.from_sentencepiece(source) if is_model else Vocabulary.from_tokenizer_json(source)
    return add_folder_tokens(read, source.parent)


def find_tokenizer(path: Path, file: TensorFile) -> Path:
    """Return the tokenizer file in the folder of a checkpoint's weights; for an Orbax tree also in the folder above.

    Raises:
        CheckpointError: There is none.
    """
    folder = path if path.is_dir() else path.parent
    for place in (folder, folder.parent) if isinstance(file, OrbaxFolder) else (folder,):
        for name in TOKENIZER_FILES:
            if (place / name).is_file():
                refuse_pointer(place / name)
                return place / name
    raise CheckpointError(f"{folder} has neither tokenizer.model nor tokenizer.json; put one into that folder.")


def check_vocabulary(config: Config, size: int, is_control: Callable[[int], bool], source: Path) -> None:
    """Check that a vocabulary fits a model.

    Args:
        config: The model.
        size: Number of tokens.
        is_control: Return whether a token is a control token.
        source: The file of the vocabulary, for errors.

    Raises:
        CheckpointError: The vocabulary is that of another model.
    """
    # Control tokens may exceed the table, as those for images do in Gemma 3's text models; tokens of text may not.
    rows = config.vocab
    multiple = min(rows & -rows, MAX_PADDING)
    fits = size - MAX_EXTRA <= rows < size + max(multiple, MAX_EXTRA + 1)
    if not fits or not all(map(is_control, range(rows, size))):
        raise CheckpointError(f"{source} has {size} tokens and the model has {rows}; use the model's own tokenizer.")


def require_same_tokens(first: tuple[str, Vocabulary, int], second: tuple[str, Vocabulary, int]) -> None:
    """Check that two models have the same token at each id.

    Args:
        first: Name and vocabulary of a model, and the number of rows of its embedding; tokens without one do not count.
        second: The same of the other.

    Raises:
        CheckpointError: They differ.
    """
    (name, ours, rows), (other, theirs, their_rows) = first, second
    pieces, their_pieces = ours.pieces[:rows], theirs.pieces[:their_rows]
    if len(pieces) != len(their_pieces):
        found = f"{name} has {len(pieces):,} tokens and {other} has {len(their_pieces):,}"
    elif pieces != their_pieces:
        token = next(index for index, pair in enumerate(zip(pieces, their_pieces, strict=True)) if pair[0] != pair[1])
        found = f"token {token} of {name} is {pieces[token]!r:.40} and that of {other} is {their_pieces[token]!r:.40}"
    else:
        return
    raise CheckpointError(f"The vocabularies differ: {found}; use models of one tokenizer.")


def add_location_tokens(vocabulary: Vocabulary, rows: int) -> Vocabulary:
    """Add PaliGemma's 1024 location and 128 segmentation tokens to Gemma's vocabulary if they fill `rows` exactly."""
    pieces = PALIGEMMA.added_pieces
    return _add_tokens(vocabulary, pieces, USER_DEFINED) if vocabulary.size + len(pieces) == rows else vocabulary


def add_control_tokens(vocabulary: Vocabulary, *markers: str) -> Vocabulary:
    """Add control tokens, which have no text, to a vocabulary."""
    return _add_tokens(vocabulary, markers, CONTROL)


def _add_tokens(vocabulary: Vocabulary, pieces: Sequence[str], kind: int) -> Vocabulary:
    return replace(
        vocabulary,
        pieces=(*vocabulary.pieces, *pieces),
        scores=np.append(vocabulary.scores, np.zeros(len(pieces), np.float32)),
        kinds=np.append(vocabulary.kinds, np.full(len(pieces), kind, np.uint8)),
    )
