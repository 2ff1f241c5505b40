"""POST /api/generate and POST /api/chat.

Source: ollama, docs/api.md
"""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gemwright.serve.apis.answer import Answer, begin, begin_chat
from gemwright.serve.apis.conversation import read_base64
from gemwright.serve.apis.ollama.fields import (
    ChatFields,
    GenerateFields,
    chat_fields,
    generate_as_chat,
    make_parameters,
    read_chat,
    read_generate,
)
from gemwright.serve.apis.ollama.models import find_source
from gemwright.serve.apis.ollama.reply import Kind, LineWriter, error_body, make_line
from gemwright.serve.apis.prepare import encode_infill, encode_prompt, make_requests
from gemwright.serve.batching.request import GenerationRequest
from gemwright.serve.http import JSONResponse, get_model, read_json, stream_lines, to_request_error, until_disconnect
from gemwright.serve.models import ServedModel
from gemwright.serve.structured import grammar
from gemwright.text import infill


def routes() -> list[Route]:
    """Return the routes."""
    return [Route("/api/generate", _generate, methods=["POST"]), Route("/api/chat", _chat, methods=["POST"])]


async def _generate(request: Request) -> Response:
    """Continue or answer a prompt, or fill in the middle; without a prompt, say that the model is loaded."""
    fields = read_generate(await read_json(request))
    if not (fields.prompt or fields.images or fields.suffix):
        return await _load(request, fields, "generate")
    served = await _get_model(request, fields)
    async with AsyncExitStack() as stack:
        if fields.raw or fields.suffix or not served.model.tuned:
            answer = await begin(served, await served.run(_make_request, served, fields), stack)
        else:
            answer = await begin_chat(request, served, generate_as_chat(fields), stack)
        return await _respond(request, fields, "generate", answer, stack)


async def _chat(request: Request) -> Response:
    """Answer a conversation; without messages, say that the model is loaded."""
    fields = read_chat(await read_json(request))
    if not fields.messages:
        return await _load(request, fields, "chat")
    served = await _get_model(request, fields)
    async with AsyncExitStack() as stack:
        answer = await begin_chat(request, served, chat_fields(fields), stack)
        return await _respond(request, fields, "chat", answer, stack)


async def _get_model(request: Request, fields: GenerateFields | ChatFields) -> ServedModel:
    """Return the model of a request, which stays loaded for the time that the request says."""
    source = find_source(request, fields.model)
    if fields.keep_alive is not None:
        source.keep_seconds = fields.keep_seconds
    return await get_model(request, source.name)


async def _load(request: Request, fields: GenerateFields | ChatFields, kind: Kind) -> Response:
    """Load the model of a request without a prompt; unload it if it is to stay for no time and is not in use."""
    source, unloads = find_source(request, fields.model), fields.keep_alive is not None and fields.keep_seconds == 0
    if unloads and source.is_idle:
        await request.app.state.registry.unload(source)
    elif not unloads:
        await _get_model(request, fields)
    else:
        source.keep_seconds = 0.0
    line = make_line(fields.model, kind)
    return JSONResponse({**line, "done": True, "done_reason": "unload" if unloads else "load"})


def _make_request(served: ServedModel, fields: GenerateFields) -> GenerationRequest:
    """Return the request of a prompt that is no conversation: raw, around a gap, or of a pretrained model."""
    model, stop_ids = served.model, served.model.stop_ids
    before = fields.prompt if fields.raw or not fields.system else f"{fields.system}\n\n{fields.prompt}"
    if fields.suffix:
        prompt, stop_ids = encode_infill(model, before, fields.suffix), infill.stop_ids(model.tokenizer)
    elif fields.images:
        prompt = model.prepare(before, [read_base64(image, "images") for image in fields.images])
    else:
        prompt = encode_prompt(model, before, markers=True)
    (made,) = make_requests(
        served,
        prompt,
        make_parameters(fields.options),
        stop_ids=stop_ids,
        top_logprobs=fields.top_logprobs if fields.logprobs else None,
        grammar=grammar.from_ollama_format(fields.format),
    )
    return made


async def _respond(
    request: Request, fields: GenerateFields | ChatFields, kind: Kind, answer: Answer, stack: AsyncExitStack
) -> Response:
    """Return the lines of an answer, or one with all of it."""
    writer = LineWriter(answer.served, fields.model, kind, logprobs=fields.logprobs)
    if fields.stream:
        return stream_lines(_lines(answer, writer), "application/x-ndjson", stack.pop_all())
    await until_disconnect(request, answer.finish(writer))
    return JSONResponse(writer.whole)


async def _lines(answer: Answer, writer: LineWriter) -> AsyncGenerator[bytes, None]:
    try:
        async for line in answer.write(writer):
            yield msgspec.json.encode(line) + b"\n"
    except Exception as error:  # the status has been sent: the error is the last line
        yield msgspec.json.encode(error_body(to_request_error(error))) + b"\n"
