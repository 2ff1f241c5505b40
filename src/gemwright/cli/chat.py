"""`gemwright chat`: hold a conversation."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Annotated

import typer

from gemwright.cli import options as o
from gemwright.cli import render
from gemwright.errors import GemwrightError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gemwright.cli.loading import Loaded
    from gemwright.generate.output import Completion
    from gemwright.text.chat import Message

HELP = """\
/reset         start a new conversation
/system TEXT   start a new conversation with this system prompt; without TEXT, with none
/image FILE    attach an image to the next message (vision models)
/help          show this help
/exit          exit, as Ctrl-D does
Ctrl-C         stop the current reply"""


@dataclass
class Conversation:
    """A conversation: an optional system prompt, alternating turns, and images for the next message."""

    system: str | None
    turns: "list[Message]" = field(default_factory=list)
    images: "list[NDArray[np.uint8]]" = field(default_factory=list)

    def messages(self, text: str) -> "list[Message]":
        """Return all messages, followed by a new user message with the attached images."""
        from gemwright.text.chat import Message

        before = [Message("system", self.system)] if self.system else []
        return [*before, *self.turns, Message("user", text, tuple(self.images))]

    def add(self, text: str, reply: str) -> None:
        """Append a user message and the reply to it."""
        from gemwright.text.chat import Message

        self.turns += [Message("user", text, tuple(self.images)), Message("assistant", reply)]
        self.images.clear()


def chat(
    model: o.ModelOption = "gemma-3-270m",
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System prompt.")] = None,
    max_tokens: o.MaxTokensOption = 1024,
    temperature: o.TemperatureOption = None,
    top_k: o.TopKOption = None,
    top_p: o.TopPOption = None,
    min_p: o.MinPOption = None,
    repetition_penalty: o.PenaltyOption = None,
    seed: o.SeedOption = None,
    image: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Image for the first message; may be repeated.")
    ] = None,
    lookup: o.LookupOption = False,
    draft: o.DraftOption = None,
    dtype: o.DTypeOption = None,
    variant: o.VariantOption = None,
    as_json: o.JsonOption = False,
    verbose: o.VerboseOption = False,
) -> None:
    """Chat with a model.

    On a terminal, /help lists the commands. If standard input is not a terminal, each line is a message.
    """
    from gemwright.cli.generate import announce_settings
    from gemwright.cli.loading import load, reading

    with reading(model, dtype) as prefetch:
        wanted = o.settings(
            max_tokens=max_tokens,
            seed=seed,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            lookup=lookup,
        )
        loaded = load(model, dtype=dtype, variant=variant, verbose=verbose, draft=draft, prefetch=prefetch)
    if verbose:
        announce_settings(loaded.model, wanted)
    if not loaded.model.tuned:
        render.warn(f"{model} is a base model, not a chat model; use one whose name ends in -it.")
    talk = Conversation(render.argument(system) if system else None)
    for file in image or []:
        _attach(file, talk, loaded)
    if sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty() and not as_json:
        _converse(loaded, talk, wanted, verbose=verbose)
    else:
        _answer_lines(loaded, talk, wanted, as_json=as_json, verbose=verbose)


def _converse(loaded: "Loaded", talk: Conversation, wanted: o.Settings, *, verbose: bool) -> None:
    """Read messages and commands from a terminal and reply."""
    import_module("readline")  # adds line editing and history to input()

    render.note(f"{loaded.name}, dtype {loaded.dtype}. Type /help for commands, Ctrl-D to exit.")
    while True:
        try:
            text = input("\n> ").strip()
        except KeyboardInterrupt:
            render.write("\n")
            render.note("Press Ctrl-D or type /exit to exit.")
            continue
        except EOFError:
            render.write("\n")
            return
        if text == "/exit":
            return
        if text.startswith("/"):
            _run_command(text, talk, loaded)
        elif text:
            _reply(loaded, talk, render.argument(text), wanted, loaded if verbose else None)


def _run_command(text: str, talk: Conversation, loaded: "Loaded") -> None:
    command, _, rest = text.partition(" ")
    match command:
        case "/reset":
            talk.turns.clear()
            talk.images.clear()
            render.note("Started a new conversation.")
        case "/system":
            talk.system = rest.strip() or None
            talk.turns.clear()
            render.note(f"Started a new conversation {'with a' if talk.system else 'without a'} system prompt.")
        case "/image":
            _attach(rest.strip(), talk, loaded)
        case "/help":
            render.note(HELP)
        case _:
            render.note(f"Unknown command {command}; type /help for a list.")


def _attach(file: str, talk: Conversation, loaded: "Loaded") -> None:
    """Attach an image to the next message."""
    from gemwright.images.load import load_image

    if loaded.model.image_prompter is None or loaded.model.image_prompter.style == "prefix":
        return render.warn(f"{loaded.name} does not accept images in a chat; use gemma-3-4b-it or larger.")
    try:
        talk.images.append(load_image(file))
    except GemwrightError as error:
        return render.warn(str(error))
    count = len(talk.images)
    return render.note(f"{count} image{'s' * (count > 1)} attached to your next message.")


def _reply(loaded: "Loaded", talk: Conversation, text: str, wanted: o.Settings, timed: "Loaded | None") -> None:
    """Stream the reply to a message. Ctrl-C stops it; the partial reply stays in the conversation."""
    from gemwright.cli.generate import write_stream

    if not _fits(loaded, talk, text):
        return
    stream = loaded.model.stream(talk.messages(text), **wanted.options())
    render.write("\n")
    try:
        write_stream(stream, loaded=timed)
        render.write("\n")
        note = _cut_off(stream.completion, wanted.max_tokens)
    except KeyboardInterrupt:
        note = "Stopped."
    if note:
        render.note(note)
    if stream.completion.text:
        talk.add(text, stream.completion.text)


def _cut_off(reply: "Completion", max_tokens: int) -> str | None:
    """Return why a reply is incomplete, or None if it is complete."""
    if reply.finish_reason == "stop":
        return None
    if len(reply.tokens) < max_tokens:
        return "The context is full; type /reset to start a new conversation."
    return f"Stopped after {max_tokens} tokens; raise the limit with --max-tokens."


def _fits(loaded: "Loaded", talk: Conversation, text: str) -> bool:
    """Return whether the conversation with one more message fits in the context; warn if it does not."""
    tokens = len(loaded.model.encode_chat(talk.messages(text)))
    context = loaded.model.engine.config.max_length
    if tokens >= context:
        remedy = "type /reset to start a new one" if talk.turns else "shorten the message"
        render.warn(f"The conversation has {tokens:,} tokens, but the model's context is {context:,}; {remedy}.")
    return tokens < context


def _answer_lines(loaded: "Loaded", talk: Conversation, wanted: o.Settings, *, as_json: bool, verbose: bool) -> None:
    """Reply to each line of standard input."""
    from gemwright.cli.generate import record, write_stream

    for text in _lines():
        stream = loaded.model.stream(talk.messages(text), **wanted.options())
        completion = write_stream(stream, silent=as_json, loaded=loaded if verbose else None)
        talk.add(text, completion.text)
        if as_json:
            render.write_json({"message": text} | record(loaded, completion, wanted))
        else:
            render.write("\n")


def _lines() -> Iterator[str]:
    """Yield the non-empty lines of standard input as they arrive."""
    if sys.stdin is None:
        raise o.no_text("message")
    for line in sys.stdin.buffer:
        if text := line.decode("utf-8", "replace").strip():
            yield text
