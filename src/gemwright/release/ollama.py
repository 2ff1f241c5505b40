"""Folders for Ollama: a GGUF file and a Modelfile with its template, stop strings, sampling and license.

Source: ollama/ollama `docs/modelfile.mdx`, `docs/template.md`, `template/template.go` (what a template is given).
"""

from collections.abc import Iterator
from pathlib import Path

from gemwright.checkpoint.convert import check_new, convert
from gemwright.checkpoint.files.atomic import create_folder, map_file
from gemwright.checkpoint.files.gguf import GgufFile
from gemwright.checkpoint.mixtures import MIXTURES
from gemwright.checkpoint.open import Checkpoint, open_checkpoint
from gemwright.checkpoint.tower import tower_path
from gemwright.errors import GemwrightError
from gemwright.families import GEMMA_1
from gemwright.loading.model import default_sampling
from gemwright.release.targets import ExportOptions, Progress
from gemwright.release.verify.definition import check_template
from gemwright.release.verify.runtime import refused_if_failed
from gemwright.release.verify.source import verify_against
from gemwright.text.chat import GEMMA
from gemwright.text.tokenizer import Tokenizer
from gemwright.text.vocabulary import INFILL_SLOTS

DTYPES = {"int8": "q8_0", "int4": "q4_k_m", "f32": "float32", "f16": "float16", "bf16": "bfloat16"}
"""The dtype of a GGUF file for each encoding of the weights; those of `MIXTURES` can be given, too."""
MODEL, MODELFILE = "model.gguf", "Modelfile"
COPIED = 1 << 24
"""Number of bytes of a GGUF file that are copied at a time."""

CHAT = """\
{{- $begin := "" }}
{{- if .System }}{{ $begin = printf "%s\\n\\n" .System }}{{ end }}
{{- range $index, $message := .Messages }}
{{- $last := eq (len (slice $.Messages $index)) 1 }}
{{- if eq .Role "user" }}<start_of_turn>user
{{ $begin }}{{ .Content }}<end_of_turn>
{{ $begin = "" }}{{ if $last }}<start_of_turn>model
{{ end }}
{{- else if eq .Role "assistant" }}<start_of_turn>model
{{ .Content }}{{ if not $last }}<end_of_turn>
{{ end }}
{{- end }}
{{- end }}"""
"""The chat format of Gemma 1 to 3: a system message begins the first turn of the user, an answer that is the last
message is continued. Ollama's tokenizer adds BOS."""
PLAIN = "{{ .Prompt }}"
INFILL = (
    "{{- if .Suffix }}<|fim_prefix|>{{ .Prompt }}<|fim_suffix|>{{ .Suffix }}<|fim_middle|>"
    "{{ else }}{{ .Prompt }}{{ end }}"
)
"""The template of CodeGemma's models that are not tuned on conversations."""


def export_ollama(source: Path, target: Path, options: ExportOptions, progress: Progress) -> None:
    """Write a checkpoint as a folder for `ollama create NAME -f Modelfile`.

    Args:
        source: A checkpoint in any format.
        target: The folder to make.
        options: `weights` is int8, int4, f32, f16, bf16 or another dtype of GGUF files. By default a GGUF file is
            copied and anything else becomes int8.
        progress: Called with a line about each stage.

    Raises:
        GemwrightError: The checkpoint cannot be read or written as GGUF, its chat template is not that of its family,
            or what was written differs from the source.
    """
    checkpoint = open_checkpoint(source)
    dtype = DTYPES.get(options.weights or "", options.weights)
    if dtype is not None and dtype not in MIXTURES:
        known = ", ".join((*DTYPES, *MIXTURES))
        raise GemwrightError(f"An Ollama folder has no weights {options.weights!r:.40}; choose one of {known}.")
    check_new(target)
    modelfile = make_modelfile(checkpoint)
    verify = (lambda: iter(verify_against(target, source, status=progress).checks)) if options.verify else None
    with refused_if_failed(target, verify), create_folder(target) as folder:
        progress("Writing the weights ...")
        _write_model(checkpoint, source, folder / MODEL, dtype)
        tower = f"FROM ./{tower_path(Path(MODEL))}\n" if tower_path(folder / MODEL).exists() else ""
        (folder / MODELFILE).write_text(f"FROM ./{MODEL}\n{tower}{modelfile}", encoding="utf-8")


def _write_model(checkpoint: Checkpoint, source: Path, file: Path, dtype: str | None) -> None:
    opened = checkpoint.file
    is_one_file = isinstance(opened, GgufFile) and len({id(data) for data in opened.maps.values()}) == 1
    if dtype is None and is_one_file and checkpoint.config.vision is None:
        data = map_file(checkpoint.path)
        with file.open("xb") as out:
            for start in range(0, len(data), COPIED):
                out.write(data[start : start + COPIED])
        return
    convert(source, file, "gguf", dtype or "q8_0")


def make_modelfile(checkpoint: Checkpoint) -> str:
    """Return the Modelfile of a checkpoint without its FROM.

    Raises:
        GemwrightError: Its chat template is not that of its family.
    """
    vocabulary = checkpoint.vocabulary()
    family, tuned = checkpoint.family, bool(checkpoint.chat_templates)
    if tuned and (check := check_template(checkpoint, Tokenizer(vocabulary), None)).result == "failed":
        raise GemwrightError(
            f"{checkpoint.path} has a chat template that is not {family.name}'s ({check.detail}); write its Modelfile "
            "by hand."
        )
    infill = family is GEMMA_1 and all(vocabulary.pieces[token] == names[0] for token, names in INFILL_SLOTS.items())
    template = CHAT if tuned else INFILL if infill else PLAIN
    stops = [GEMMA.turn_end] if tuned else [names[0] for names in INFILL_SLOTS.values()] if infill else []
    lines = [f"TEMPLATE {_quote(template)}", *(f'PARAMETER stop "{stop}"' for stop in stops)]
    lines += [f"PARAMETER {name} {value}" for name, value in _parameters(checkpoint)]
    return "\n".join([*lines, f"LICENSE {_quote(f'{family.license}: {family.terms}')}", ""])


def _parameters(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    """Yield the sampling settings by their names in Ollama, whose own defaults differ."""
    sampling = default_sampling(checkpoint)
    yield "temperature", f"{sampling.temperature:g}"
    yield "top_k", str(sampling.top_k)
    yield "top_p", f"{sampling.top_p:g}"
    yield "min_p", f"{sampling.min_p:g}"
    yield "repeat_penalty", f"{sampling.repetition_penalty:g}"


def _quote(text: str) -> str:
    return f'"""{text}"""'
