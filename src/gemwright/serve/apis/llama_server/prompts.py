"""From the fields of llama-server's completions to requests for generations."""

import secrets
from collections.abc import Sequence
from typing import Any, cast

from gemwright.errors import RequestError
from gemwright.families import FILL_IN_THE_MIDDLE
from gemwright.generate.prompts import Ids
from gemwright.serve.apis.llama_server.fields import (
    REFUSED_UNLESS_0,
    CompletionFields,
    ExtraInput,
    InfillFields,
    make_parameters,
)
from gemwright.serve.apis.prepare import (
    MAX_CHOICES,
    encode_infill,
    encode_prompt,
    infill_markers,
    make_requests,
    split_markers,
)
from gemwright.serve.batching.request import GenerationRequest
from gemwright.serve.http import refuse
from gemwright.serve.models import ServedModel
from gemwright.serve.structured import grammar
from gemwright.text import infill
from gemwright.text.tokenizer import Tokenizer

DEFAULT_INFILL_TOKENS = 128
"""Maximum number of tokens of an infill request that does not limit them."""


def make_completion(served: ServedModel, fields: CompletionFields) -> list[GenerationRequest]:
    """Return the requests of POST /completion: as many as `n_cmpl` for each prompt.

    Raises:
        RequestError: A field is wrong; `param` has its name.
    """
    model, made = served.model, list[GenerationRequest]()
    markers = infill_markers(model.tokenizer).values()
    for prompt in _read_prompts(fields.prompt):
        ids = _encode(served, prompt)
        is_infill = not set(markers).isdisjoint(ids)
        made += _make(served, fields, ids, (*model.stop_ids, *(infill.stop_ids(model.tokenizer) if is_infill else ())))
    return made


def _make(
    served: ServedModel, fields: CompletionFields, prompt: Ids, stop_ids: Sequence[int]
) -> list[GenerationRequest]:
    return make_requests(
        served,
        prompt,
        make_parameters(fields, served.model.tokenizer, secrets.token_hex(8)),
        stop_ids=stop_ids,
        top_logprobs=fields.n_probs or None,
        grammar=_grammar(fields),
    )


def _grammar(fields: CompletionFields) -> str | None:
    """Return the grammar of a request, given as such or as a JSON schema."""
    if fields.grammar:
        return grammar.from_lark(fields.grammar)
    return None if fields.json_schema is None else grammar.from_json_schema(fields.json_schema, "json_schema")


def _read_prompts(prompt: Any) -> list[str | list[int | str]]:
    """Return the prompts of a request.

    Raises:
        RequestError: It has none, too many, or one that is neither text nor a list of token ids and texts.
    """
    parts = cast(list[Any], prompt) if isinstance(prompt, list) else []
    several = parts and all(isinstance(part, str | list | dict) for part in parts)
    prompts = [_read_text(part) for part in (parts if several else [prompt])]
    if len(prompts) > MAX_CHOICES:
        raise RequestError(f"There are {len(prompts)} prompts; send at most {MAX_CHOICES}.", param="prompt")
    for one in prompts:
        items = cast(list[Any], one) if isinstance(one, list) else [one] if isinstance(one, str) else []
        if not items or not all(isinstance(item, str) or type(item) is int for item in items):
            raise RequestError("A prompt must be a text, or a list of token ids and texts.", param="prompt")
    return prompts


def _read_text(prompt: Any) -> Any:
    """Return the text of an object, and other prompts as they are."""
    if not isinstance(prompt, dict):
        return prompt
    fields = cast(dict[str, Any], prompt)
    refuse(fields, {"multimodal_data": REFUSED_UNLESS_0["multimodal_data"]})
    return fields.get("prompt_string")


def _encode(served: ServedModel, prompt: str | list[int | str]) -> Ids:
    """Return the ids of a prompt. Its texts may name fill-in-the-middle tokens; one at the beginning follows BOS."""
    if isinstance(prompt, str):
        return cast(Ids, encode_prompt(served.model, prompt, markers=True))
    tokenizer, ids = served.model.tokenizer, list[int]()
    for part in prompt:
        ids += tokenizer.join(split_markers(tokenizer, part)) if isinstance(part, str) else [part]
    ids = tokenizer.with_bos(ids) if isinstance(prompt[0], str) else ids
    return cast(Ids, encode_prompt(served.model, ids))


def make_infill(served: ServedModel, fields: InfillFields) -> tuple[list[GenerationRequest], bool]:
    """Return the requests of POST /infill, and whether pieces of other files were left out because they do not fit."""
    model = served.model
    code = encode_infill(model, fields.input_prefix + fields.prompt, fields.input_suffix)
    if fields.n_predict < 0:
        fields.n_predict = DEFAULT_INFILL_TOKENS
    if fields.temperature is None and fields.samplers is None:
        fields.temperature = 0.0
    room = served.context - len(code) - max(fields.n_predict, 1)
    extra = _encode_extra(model.tokenizer, fields.input_extra, room)
    # BOS, pieces of other files, then the code, as CodeGemma was trained.
    ids = [*code[:1], *(token for piece in extra for token in piece), *code[1:]]
    return _make(served, fields, ids, infill.stop_ids(model.tokenizer)), len(extra) < len(fields.input_extra)


def _encode_extra(tokenizer: Tokenizer, pieces: Sequence[ExtraInput], room: int) -> list[list[int]]:
    """Return the ids of the last pieces that fit in a number of tokens: a file's name, its text and a separator."""
    separator, chosen = tokenizer.id_of(FILL_IN_THE_MIDDLE.separator), list[list[int]]()
    for piece in reversed(pieces):
        ids = [*tokenizer.encode(f"{piece.filename}\n{piece.text}"), separator]
        room -= len(ids)
        if room < 0:
            break
        chosen.insert(0, ids)
    return chosen
