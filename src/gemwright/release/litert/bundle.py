"""Bundle a `.tflite` with its tokenizer and settings for LiteRT-LM.

Source: ai.google.dev/edge/litert-lm, and LiteRT-LM `runtime/proto/llm_metadata.proto`.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from litert_lm_builder import litertlm_builder as builder  # pyright: ignore[reportMissingImports]
from litert_lm_builder.runtime.proto import llm_metadata_pb2 as metadata  # pyright: ignore[reportMissingImports]

from gemwright.checkpoint.open import Checkpoint
from gemwright.families import GEMMA_3
from gemwright.text.chat import FORMATS
from gemwright.text.vocabulary import Vocabulary


def write_bundle(checkpoint: Checkpoint, tflite: Path, target: Path, context: int) -> None:
    """Write a `.litertlm`.

    Args:
        checkpoint: The source of the tokenizer, stop tokens and chat template.
        tflite: The model.
        target: The file to make.
        context: Number of tokens of its caches.
    """
    vocabulary = checkpoint.vocabulary()
    with TemporaryDirectory(dir=target.parent) as name:
        settings, tokenizer = Path(name, "llm_metadata.pb"), Path(name, "tokenizer.model")
        settings.write_bytes(describe_model(checkpoint, vocabulary, context).SerializeToString())
        tokenizer.write_bytes(vocabulary.sentencepiece_model())
        file = builder.LitertLmFileBuilder()
        file.add_system_metadata(builder.Metadata("Authors", "gemwright", builder.DType.STRING))
        file.add_llm_metadata(str(settings))
        file.add_sentencepiece_tokenizer(str(tokenizer))
        file.add_tflite_model(str(tflite), builder.TfLiteModelType.PREFILL_DECODE)
        with target.open("xb") as out:
            file.build(out)


def describe_model(checkpoint: Checkpoint, vocabulary: Vocabulary, context: int) -> Any:
    """Return LiteRT-LM's description of a model: special tokens, turns of a chat, and its kind."""
    family = checkpoint.family
    chat = FORMATS[family.chat_format]
    described = metadata.LlmMetadata(max_num_tokens=context)
    described.start_token.token_ids.ids.append(vocabulary.pieces.index("<bos>"))
    ends = checkpoint.stop_ids or (vocabulary.pieces.index("<eos>"),)
    if chat.turn_end in vocabulary.pieces:
        ends = (*ends, vocabulary.pieces.index(chat.turn_end))
    for token in dict.fromkeys(ends):
        described.stop_tokens.add().token_ids.ids.append(token)
    kind = described.llm_model_type
    (kind.gemma3 if family is GEMMA_3 else kind.generic_model).SetInParent()
    if checkpoint.chat_template is not None:
        described.jinja_prompt_template = checkpoint.chat_template
        templates = described.prompt_templates
        for turn, role in ((templates.user, "user"), (templates.model, "model")):
            turn.prefix, turn.suffix = f"{chat.turn_start}{role}\n", f"{chat.turn_end}\n"
    return described
