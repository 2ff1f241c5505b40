"""`gemwright chat`: a conversation."""

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
/reset         forget the conversation
/system TEXT   begin anew with this system message; without TEXT, with none
/image FILE    show a picture with the next message, to a model that sees
/help          show this
/exit          leave; so does Ctrl-D
Ctrl-C         stop the reply that is being written"""


@dataclass
class Conversation:
    """What has been said: an optional system message, then user and assistant in turn; pictures for what comes next."""

    system: str | None
    turns: "list[Message]" = field(default_factory=list)
    images: "list[NDArray[np.uint8]]" = field(default_factory=list)

    def messages(self, text: str) -> "list[Message]":
        """All of it and what the user says now, as a model takes it."""
        from gemwright.text.chat import Message

        before = [Message("system", self.system)] if self.system else []
        return [*before, *self.turns, Message("user", text, tuple(self.images))]

    def add(self, text: str, reply: str) -> None:
        """Keep what the user said and the model answered."""
        from gemwright.text.chat import Message

        self.turns += [Message("user", text, tuple(self.images)), Message("assistant", reply)]
        self.images.clear()


def chat(
    model: o.ModelOption = "gemma-3-270m",
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="What the model is told beforehand.")] = None,
    max_tokens: o.MaxTokensOption = 1024,
    temperature: o.TemperatureOption = None,
    top_k: o.TopKOption = None,
    top_p: o.TopPOption = None,
    min_p: o.MinPOption = None,
    repetition_penalty: o.PenaltyOption = None,
    seed: o.SeedOption = None,
    image: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="A picture for the first message; may be given again.")
    ] = None,
    lookup: o.LookupOption = False,
    draft: o.DraftOption = None,
    dtype: o.DTypeOption = None,
    variant: o.VariantOption = None,
    as_json: o.JsonOption = False,
    verbose: o.VerboseOption = False,
) -> None:
    """Talk with a model.

    On a terminal, /help lists what else can be typed. From a pipe, every line is a message and the replies go to
    standard output.
    """
    from gemwright.cli.generate import announce_settings
    from gemwright.cli.loading import load, reading

    with reading(model, dtype) as early:
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
        loaded = load(model, dtype=dtype, variant=variant, verbose=verbose, draft=draft, early=early)
    if verbose:
        announce_settings(loaded.model, wanted)
    if not loaded.model.tuned:
        render.warn(
            f"{model} was not tuned for conversation, so its replies ramble; the names of those that were end in -it."
        )
    talk = Conversation(render.argument(system) if system else None)
    for file in image or []:
        _show(file, talk, loaded)
    if sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty() and not as_json:
        _converse(loaded, talk, wanted, verbose=verbose)
    else:
        _answer_lines(loaded, talk, wanted, as_json=as_json, verbose=verbose)


def _converse(loaded: "Loaded", talk: Conversation, wanted: o.Settings, *, verbose: bool) -> None:
    """Read, reply, repeat, on a terminal."""
    import_module("readline")  # gives input() line editing and a history

    render.news(f"{loaded.name}, {loaded.dtype}; /help lists the commands, Ctrl-D leaves.")
    while True:
        try:
            text = input("\n> ").strip()
        except KeyboardInterrupt:
            render.write("\n")
            render.news("Ctrl-D or /exit leaves.")
            continue
        except EOFError:
            render.write("\n")
            return
        if text == "/exit":
            return
        if text.startswith("/"):
            _obey(text, talk, loaded)
        elif text:
            _reply(loaded, talk, render.argument(text), wanted, loaded if verbose else None)


def _obey(text: str, talk: Conversation, loaded: "Loaded") -> None:
    command, _, rest = text.partition(" ")
    match command:
        case "/reset":
            talk.turns.clear()
            talk.images.clear()
            render.news("Forgotten.")
        case "/system":
            talk.system = rest.strip() or None
            talk.turns.clear()
            render.news("The conversation begins anew" + (", with this system message." if talk.system else "."))
        case "/image":
            _show(rest.strip(), talk, loaded)
        case "/help":
            render.news(HELP)
        case _:
            render.news(f"There is no command {command}; /help lists them.")


def _show(file: str, talk: Conversation, loaded: "Loaded") -> None:
    """Read a picture for the next message."""
    from gemwright.images.load import load_image

    if loaded.model.image_prompter is None or loaded.model.image_prompter.style == "prefix":
        return render.warn(f"{loaded.name} takes no pictures in a conversation; gemma-3-4b-it and larger do.")
    try:
        talk.images.append(load_image(file))
    except GemwrightError as error:
        return render.warn(str(error))
    return render.news(f"{len(talk.images)} with the next message.")


def _reply(loaded: "Loaded", talk: Conversation, text: str, wanted: o.Settings, timed: "Loaded | None") -> None:
    """Stream the reply to a message. Ctrl-C ends it, and what was written stays in the conversation."""
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
        render.news(note)
    if stream.completion.text:
        talk.add(text, stream.completion.text)


def _cut_off(reply: "Completion", max_tokens: int) -> str | None:
    """Why a reply has no end, if it has none."""
    if reply.finish_reason == "stop":
        return None
    if len(reply.tokens) < max_tokens:
        return "The context is full; /reset starts anew."
    return f"Cut off after {max_tokens} tokens; --max-tokens allows more."


def _fits(loaded: "Loaded", talk: Conversation, text: str) -> bool:
    """Whether the model can take the conversation with one more message; if not, says so."""
    tokens = len(loaded.model.encode_chat(talk.messages(text)))
    context = loaded.model.engine.config.max_length
    if tokens >= context:
        way_out = "start anew with /reset" if talk.turns else "shorten the message"
        render.warn(f"The conversation has {tokens:,} tokens and the model's context is {context:,}; {way_out}.")
    return tokens < context


def _answer_lines(loaded: "Loaded", talk: Conversation, wanted: o.Settings, *, as_json: bool, verbose: bool) -> None:
    """Answer every line of standard input."""
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
    """The lines of standard input that are not empty, as they come."""
    if sys.stdin is None:
        raise o.no_text("message")
    for line in sys.stdin.buffer:
        if text := line.decode("utf-8", "replace").strip():
            yield text
