"""`gemwright chat`: hold a conversation."""

import difflib
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemwright.cli import options as o
from gemwright.cli import render
from gemwright.cli.conversation import Conversation, attach
from gemwright.cli.screening import Screening, check_options, load_screening
from gemwright.cli.terminal import MessageReader
from gemwright.errors import GemwrightError

if TYPE_CHECKING:
    from gemwright.cli.loading import Loaded
    from gemwright.generate.output import Completion
    from gemwright.model.config import Config

HELP = """\
/reset         start a new conversation (also /clear)
/system TEXT   start a new conversation with this system prompt; without TEXT, with none
/image FILE    attach an image to the next message (vision models)
/save FILE     save the conversation as JSON messages
/load FILE     continue a saved conversation
/help          show this help (also /?)
/exit          exit, as exit, quit, /quit, /bye and Ctrl-D do
\"""            begin and end a message of several lines; pasted lines are one message
Ctrl-C         stop the current reply"""

LEAVE = ("/exit", "/quit", "/bye", "exit", "quit")
COMMANDS = ("/reset", "/clear", "/system", "/image", "/save", "/load", "/help", "/?")


def chat(
    model: o.ModelOption = "gemma-3-270m",
    system: o.SystemOption = None,
    max_tokens: o.MaxTokensOption = 1024,
    temperature: o.TemperatureOption = None,
    top_k: o.TopKOption = None,
    top_p: o.TopPOption = None,
    min_p: o.MinPOption = None,
    repetition_penalty: o.PenaltyOption = None,
    presence_penalty: o.PresenceOption = None,
    frequency_penalty: o.FrequencyOption = None,
    seed: o.SeedOption = None,
    stop: o.StopOption = None,
    image: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Image for the first message; may be repeated.")
    ] = None,
    session: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Continue the conversation in FILE, if it exists; save it after each reply."),
    ] = None,
    lookup: o.LookupOption = False,
    draft: o.DraftOption = None,
    adapter: o.AdapterOption = None,
    watermark: o.WatermarkOption = None,
    shield: o.ShieldOption = None,
    policy: o.PolicyOption = None,
    dtype: o.DTypeOption = None,
    variant: o.VariantOption = None,
    threads: o.ThreadsOption = None,
    as_json: o.JsonOption = False,
    verbose: o.VerboseOption = False,
) -> None:
    """Chat with a model.

    On a terminal, /help lists the commands. If standard input is not a terminal, each line is a message.
    """
    from gemwright.cli.generate import announce_settings
    from gemwright.cli.loading import load, reading

    check_options(shield, policy)
    with reading(model, dtype) as prefetch:
        wanted = o.settings(
            max_tokens=max_tokens,
            seed=seed,
            stop=stop,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            lookup=lookup,
            watermark=watermark,
        )
        talk = _begin(system, session)
        loaded = load(
            model,
            dtype=dtype,
            variant=variant,
            verbose=verbose,
            adapters=o.adapters(adapter),
            draft=draft,
            prefetch=prefetch,
        )
    screening = load_screening(shield, policy)
    if verbose:
        announce_settings(loaded.model, wanted)
    if not loaded.model.tuned:
        render.warn(f"{model} is a base model, not a chat model; {_suggest(loaded.model.engine.config)}.")
    for file in image or []:
        _attach(file, talk, loaded)
    if sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty() and not as_json:
        _converse(loaded, talk, wanted, screening, verbose=verbose)
    else:
        _answer_lines(loaded, talk, wanted, screening, as_json=as_json, verbose=verbose)


def _begin(system: str | None, session: Path | None) -> Conversation:
    """Return the conversation to continue or begin; a given system prompt replaces that of the file."""
    talk = Conversation(session=session)
    if session is not None:
        o.check_output(session)
        if session.exists():
            talk.load(session)
    if system is not None:
        talk.system = render.argument(system) or None
    return talk


def _suggest(config: "Config") -> str:
    """Return advice that names the chat models with the config of a base model."""
    from gemwright.cli.inspect import variants_of
    from gemwright.variants import VARIANTS

    names = [name for variant in variants_of(config) for name in VARIANTS[variant].checkpoints if name.endswith("-it")]
    return "use one whose name ends in -it" + (f", such as {names[0]}" if names else "")


def _converse(loaded: "Loaded", talk: Conversation, wanted: o.Settings, screening: Screening, *, verbose: bool) -> None:
    """Read messages and commands from a terminal and reply."""
    reader = MessageReader(_is_command)
    render.note(f"{loaded.name}, dtype {loaded.dtype}. Type /help for commands, Ctrl-D to exit.")
    if talk.turns:
        render.note(f"Continuing a conversation of {len(talk.turns)} messages.")
    while True:
        try:
            text = reader.read("\n> ")
        except KeyboardInterrupt:
            render.write("\n")
            render.note("Press Ctrl-D or type /exit to exit.")
            continue
        except EOFError:
            render.write("\n")
            return
        if text.strip() in LEAVE:
            return
        try:
            if _is_command(text):
                _run_command(text, talk, loaded)
            elif text.strip():
                _reply(loaded, talk, render.argument(text.strip()), wanted, screening, loaded if verbose else None)
        except GemwrightError as error:
            render.warn(str(error))


def _is_command(text: str) -> bool:
    """Return whether a message begins with a command, or looks like one; `/usr/bin is a folder` does not."""
    words = text.split(maxsplit=1) if text.startswith("/") else ()
    return bool(words) and (words[0] in COMMANDS or re.fullmatch(r"/[a-z]*\s*", text) is not None)


def _run_command(text: str, talk: Conversation, loaded: "Loaded") -> None:
    command, _, rest = text.strip().partition(" ")
    rest = rest.strip()
    match command:
        case "/reset" | "/clear":
            talk.reset()
            render.note("Started a new conversation.")
        case "/system":
            talk.reset()
            talk.system = rest or None
            render.note(f"Started a new conversation {'with a' if talk.system else 'without a'} system prompt.")
        case "/image":
            _attach(rest, talk, loaded)
        case "/save" | "/load" if not rest:
            render.note(f"The file is missing; type {command} FILE.")
        case "/save":
            talk.save(Path(rest).expanduser())
            render.note(f"Saved {len(talk.turns)} messages in {rest}.")
        case "/load":
            talk.load(Path(rest).expanduser())
            render.note(f"Continuing a conversation of {len(talk.turns)} messages.")
        case "/help" | "/?":
            render.note(HELP)
        case _:
            nearest = difflib.get_close_matches(command, [*COMMANDS, *LEAVE], n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else "type /help for a list."
            render.note(f"Unknown command {command}; {hint}")


def _attach(file: str, talk: Conversation, loaded: "Loaded") -> None:
    """Attach an image to the next message."""
    if loaded.model.image_prompter is None or loaded.model.image_prompter.style == "prefix":
        return render.warn(f"{loaded.name} does not accept images in a chat; use gemma-3-4b-it or larger.")
    try:
        talk.images.append(attach(file))
    except GemwrightError as error:
        return render.warn(str(error))
    count = len(talk.images)
    return render.note(f"{count} image{'s' * (count > 1)} attached to your next message.")


def _reply(
    loaded: "Loaded", talk: Conversation, text: str, wanted: o.Settings, screening: Screening, timed: "Loaded | None"
) -> None:
    """Stream the reply to a message. Ctrl-C stops it, and the partial reply stays in the conversation.

    Raises:
        PolicyError: The message or its reply is refused; neither stays.
    """
    from gemwright.cli.generate import write_stream

    if not _fits(loaded, talk, text):
        return
    screening.check([text])
    stream = loaded.model.stream(talk.messages(text), **wanted.options())
    render.write("\n")
    try:
        write_stream(stream, partial(screening.pieces, text), loaded=timed)
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


def _answer_lines(
    loaded: "Loaded", talk: Conversation, wanted: o.Settings, screening: Screening, *, as_json: bool, verbose: bool
) -> None:
    """Reply to each line of standard input."""
    from gemwright.cli.generate import record, write_stream

    for text in _lines():
        screening.check([text])
        stream = loaded.model.stream(talk.messages(text), **wanted.options())
        completion = write_stream(
            stream, partial(screening.pieces, text), silent=as_json, loaded=loaded if verbose else None
        )
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
