"""`/tokenize`, `/detokenize` and `/tokenizer_info`, in the formats of vLLM and llama-server."""

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gemwright.api import Model
from gemwright.errors import GemwrightError, RequestError
from gemwright.generate.prompts import token_ids
from gemwright.serve.apis.conversation import encode_messages
from gemwright.serve.apis.openai.messages import ChatMessage, read_messages
from gemwright.serve.apis.openai.replies import token_text
from gemwright.serve.apis.prepare import encode_prompt
from gemwright.serve.http import JSONResponse, convert, get_model, read_json, settings_of
from gemwright.text.vocabulary import Vocabulary


class TokenizeRequest(msgspec.Struct):
    """The body of a request; `content` and what follows it are llama-server's."""

    model: str = ""
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False
    content: str | None = None
    add_special: bool = False
    with_pieces: bool = False


class DetokenizeRequest(msgspec.Struct):
    """The body of a request."""

    tokens: list[int]
    model: str = ""


async def tokenize(request: Request) -> Response:
    """Answer with the ids of a text or a conversation."""
    wanted = convert(await read_json(request), TokenizeRequest)
    served = await get_model(request, wanted.model)
    model = served.model
    if wanted.content is not None:
        ids = await served.run(_encode, model, wanted.content, wanted.add_special)
        pieces = [{"id": token, "piece": token_text(model.tokenizer, token)} for token in ids]
        return JSONResponse({"tokens": pieces if wanted.with_pieces else ids})
    if wanted.messages is not None:
        prompt = await encode_messages(served, read_messages(wanted.messages), settings_of(request))
        ids = list(token_ids(prompt))
    elif wanted.prompt is not None:
        ids = await served.run(_encode, model, wanted.prompt, wanted.add_special_tokens)
    else:
        raise RequestError("The text is missing; send prompt, messages or content.", param="prompt")
    reply: dict[str, Any] = {"count": len(ids), "max_model_len": served.context, "tokens": ids, "token_strs": None}
    if wanted.return_token_strs:
        reply["token_strs"] = [token_text(model.tokenizer, token) for token in ids]
    return JSONResponse(reply)


def _encode(model: Model, text: str, bos: bool) -> list[int]:
    """Return the ids of a text; that of a control token if the text is its name, by which clients look ids up."""
    try:
        control = [model.tokenizer.id_of(text)]
        return control if not bos else model.tokenizer.with_bos(control)
    except GemwrightError:
        return list(token_ids(encode_prompt(model, text, bos=bos)))


async def detokenize(request: Request) -> Response:
    """Answer with the text of ids."""
    wanted = convert(await read_json(request), DetokenizeRequest)
    served = await get_model(request, wanted.model)
    tokenizer = served.model.tokenizer
    for token in wanted.tokens:
        if not 0 <= token < tokenizer.size:
            raise RequestError(f"tokens has {token}, and ids are below {tokenizer.size}.", param="tokens")
    text = await served.run(tokenizer.decode, wanted.tokens)
    return JSONResponse({"prompt": text, "content": text})


async def tokenizer_info(request: Request) -> Response:
    """Answer with the special tokens and the chat template."""
    served = await get_model(request, request.query_params.get("model"))
    template = next(iter(served.model.chat_template.sources.values()), None)
    return JSONResponse(Vocabulary.tokenizer_config(template) | {"model_max_length": served.context})
