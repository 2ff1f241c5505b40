"""`gemwright generate`: continue prompts."""

import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeAlias

import typer

from gemwright.cli import options as o
from gemwright.cli import render
from gemwright.cli.screening import Screening, check_options, load_screening
from gemwright.errors import GemwrightError

if TYPE_CHECKING:
    from gemwright.api import Model
    from gemwright.cli.loading import Loaded
    from gemwright.generate.output import Completion, Stream
    from gemwright.text.chat import Message


def generate(
    prompt: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="Prompts to continue; - reads standard input, the default."),
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Also continue the text of FILE (- for standard input); may be repeated."),
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Apply the chat template to each prompt (-it models).")] = False,
    system: o.SystemOption = None,
    ids: Annotated[
        bool, typer.Option("--ids", help="Each prompt is a list of token ids, such as '2 818 5279'; no BOS is added.")
    ] = False,
    model: o.ModelOption = "gemma-3-270m",
    max_tokens: o.MaxTokensOption = 256,
    temperature: o.TemperatureOption = None,
    top_k: o.TopKOption = None,
    top_p: o.TopPOption = None,
    min_p: o.MinPOption = None,
    repetition_penalty: o.PenaltyOption = None,
    presence_penalty: o.PresenceOption = None,
    frequency_penalty: o.FrequencyOption = None,
    seed: o.SeedOption = None,
    samples: Annotated[
        int, typer.Option("--samples", "-n", min=1, max=1024, metavar="N", help="Number of texts for each prompt.")
    ] = 1,
    stop: o.StopOption = None,
    logprobs: o.LogprobsOption = False,
    top_logprobs: o.TopLogprobsOption = None,
    lookup: o.LookupOption = False,
    draft: o.DraftOption = None,
    adapter: o.AdapterOption = None,
    watermark: o.WatermarkOption = None,
    shield: o.ShieldOption = None,
    policy: o.PolicyOption = None,
    dtype: o.DTypeOption = None,
    variant: o.VariantOption = None,
    mesh: o.ModelMeshOption = None,
    threads: o.ThreadsOption = None,
    echo: Annotated[
        bool | None,
        typer.Option("--echo/--no-echo", help="Print the prompt before the text. Default: on a terminal only."),
    ] = None,
    as_json: o.JsonOption = False,
    verbose: o.VerboseOption = False,
) -> None:
    """Continue one or several prompts.

    Several prompts run as one batch. Sampling parameters default to the model's own.
    """
    if system is not None and not chat:
        raise GemwrightError("--system is part of the chat template; add --chat to apply it.")
    if ids and chat:
        raise GemwrightError("--ids are not changed by a chat template; leave out --chat.")
    check_options(shield, policy)
    prompts = [text for text in _read_prompts(prompt, file) for _ in range(samples)]
    inputs = [_parse_ids(text) if ids else _converse(text, system) if chat else text for text in prompts]
    from gemwright.cli.loading import load, reading

    with reading(model, dtype, mesh) as prefetch:
        wanted = o.settings(
            max_tokens=max_tokens,
            stop=stop,
            seed=seed,
            logprobs=logprobs,
            top_logprobs=top_logprobs,
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
        loaded = load(
            model,
            dtype=dtype,
            variant=variant,
            verbose=verbose,
            adapters=o.adapters(adapter),
            draft=draft,
            mesh=mesh,
            prefetch=prefetch,
        )
    if verbose:
        announce_settings(loaded.model, wanted)
    _advise(loaded, prompts, chat=chat)
    screening = load_screening(shield, policy)
    is_screened = screening.shield is not None
    given = [loaded.model.decode(_parse_ids(text)) if ids and is_screened else text for text in prompts]
    screening.check([*([system] if system else []), *given])
    show = Show(echo=sys.stdout.isatty() if echo is None else echo, as_json=as_json, verbose=verbose)
    each = wanted.options(len(prompts))
    run: Any = loaded.model.chat if chat else loaded.model.generate
    if len(prompts) == 1:
        screened = Screening() if as_json else screening
        completions = [_stream(loaded, prompts[0], inputs[0], wanted, show, partial(screened.pieces, given[0]))]
    else:
        completions = _timed(loaded, lambda: run(inputs, **each), verbose=verbose)
    if as_json or len(prompts) > 1:
        completions = screening.completions(given, completions)
    for index, (text, completion) in enumerate(zip(prompts, completions, strict=True)):
        if as_json:
            render.write_json({"prompt": text} | record(loaded, completion, wanted, index))
            continue
        if len(prompts) > 1:
            _echo(text, show)
            render.write(completion.text + "\n")
        if wanted.reports_logprobs:
            render.write("\n")
            tokenizer = loaded.model.tokenizer
            render.token_lines(tokenizer, completion.tokens, completion.logprobs, completion.top_logprobs)
        if index + 1 < len(prompts) and sys.stdout.isatty():
            render.write("\n")
    if screening.refusal is not None:
        raise screening.refusal


class Show(NamedTuple):
    """How to print texts: after their prompts, as JSON, and with the speed."""

    echo: bool
    as_json: bool
    verbose: bool


def _read_prompts(given: list[str] | None, files: list[Path] | None) -> list[str]:
    """Return the prompts of the arguments and of files; those of standard input if there are none."""
    texts = [_read_stdin() if text == "-" else render.argument(text) for text in given or []]
    texts += [_read_stdin() if str(file) == "-" else _without_newline(render.read_file(file)) for file in files or []]
    return texts or [_read_stdin()]


def _without_newline(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")


def _read_stdin() -> str:
    text = render.read_stdin()
    if text is None:
        raise o.no_text("prompt")
    return text


def _converse(prompt: str, system: str | None) -> "list[Message]":
    from gemwright.text.chat import Message

    before = [Message("system", render.argument(system))] if system else []
    return [*before, Message("user", prompt)]


def _parse_ids(text: str) -> list[int]:
    """Return the token ids of a prompt, separated by spaces or commas."""
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise GemwrightError(f"{text!r:.80} is not a list of token ids; use numbers, such as '2 818 5279'.") from None


_INSTRUCTION = re.compile(
    r"(what|who|where|when|why|how|which|can you|could you|please|write|explain|describe|list|name|give|tell"
    r"|summari[sz]e|translate|create|make|generate|compare|suggest|compose|draft|define|solve|calculate)\b",
    re.IGNORECASE,
)


def _advise(loaded: "Loaded", prompts: Sequence[str], *, chat: bool) -> None:
    """Print a hint if a chat model gets a question or an instruction without its template, or there is none."""
    if chat and not loaded.model.tuned:
        render.warn(f"{loaded.name} has no chat template of its own; --chat applies Gemma's.")
    if chat or not loaded.model.tuned:
        return
    if any(text.rstrip().endswith("?") or _INSTRUCTION.match(text.lstrip()) for text in prompts):
        render.warn(f"{loaded.name} is a chat model, and the prompt is continued as text; add --chat for an answer.")


def _echo(prompt: str, show: Show) -> None:
    """Print the prompt, dimmed on a terminal, if it is wanted."""
    if show.echo and sys.stdout.isatty():
        render.out().print(render.printable(prompt), style="dim", end="", soft_wrap=True)
    elif show.echo:
        render.write(prompt)


def _stream(
    loaded: "Loaded",
    prompt: str,
    inputs: "str | list[int] | list[Message]",
    wanted: o.Settings,
    show: Show,
    screen: "Screen",
) -> "Completion":
    if not show.as_json:
        _echo(prompt, show)
        if show.echo and not isinstance(inputs, str):  # an answer begins a line
            render.write("\n")
    stream = loaded.model.stream(inputs, **wanted.options())
    completion = write_stream(stream, screen, silent=show.as_json, loaded=loaded if show.verbose else None)
    if not show.as_json:
        render.write("\n")
    return completion


Screen: TypeAlias = Callable[[Iterable[str]], Iterable[str]]
"""What passes the pieces of a text on when they have been judged."""


def write_stream(
    stream: "Stream", screen: Screen = iter, *, silent: bool = False, loaded: "Loaded | None" = None
) -> "Completion":
    """Write the pieces of a stream as they pass, unless silent; if `loaded` is given, print the speed."""
    start = time.perf_counter()
    first = None
    try:
        for piece in screen(stream):
            first = time.perf_counter() if first is None else first
            if not silent:
                render.write(piece)
    except (KeyboardInterrupt, GemwrightError):
        if sys.stdout.isatty():  # start the next message on a new line
            render.write("\n")
        raise
    if loaded is not None:
        end = time.perf_counter()
        announce_speed(loaded, [stream.completion], first and first - start, end - (first or start))
    return stream.completion


def _timed(loaded: "Loaded", run: "Callable[[], list[Completion]]", *, verbose: bool) -> "list[Completion]":
    """Run a batch, and print its speed if asked."""
    start = time.perf_counter()
    completions = run()
    if verbose:
        announce_speed(loaded, completions, None, time.perf_counter() - start)
    return completions


def announce_settings(model: "Model", wanted: o.Settings) -> None:
    """Print the sampling parameters to standard error."""
    from gemwright.cli.loading import describe

    render.facts([("sampling", f"{describe(wanted.resolve(model.defaults))}, seed {wanted.seed}")], render.err())


def announce_speed(loaded: "Loaded", completions: "Iterable[Completion]", first: float | None, seconds: float) -> None:
    """Print load time and speed to standard error.

    Args:
        loaded: The model.
        completions: The generated texts.
        first: Seconds to the first token, or None if not measured.
        seconds: Seconds after the first token, or of the whole call if `first` is None.
    """
    completions = list(completions)
    written = sum(len(completion.tokens) for completion in completions)
    prompts = sum(completion.prompt_tokens for completion in completions)
    rows = [("load", f"{loaded.seconds:.2f} s"), ("prompt", f"{prompts} tokens")]
    if first is not None:
        rows.append(("first", f"{first:.2f} s to the first token"))
        written -= 1
    rows.append(("speed", f"{written / max(seconds, 1e-9):.1f} tokens/s ({written} in {seconds:.2f} s)"))
    if proposed := sum(completion.proposed for completion in completions):
        accepted = sum(completion.accepted for completion in completions)
        rows.append(("speculation", f"{accepted} of {proposed} draft tokens accepted"))
    console = render.err()
    console.print()
    render.facts(rows, console)


def record(loaded: "Loaded", completion: "Completion", wanted: o.Settings, text: int = 0) -> dict[str, Any]:
    """Return the JSON record of a completion and its settings; `text` is the index of its prompt."""
    tokenizer = loaded.model.tokenizer
    entry: dict[str, Any] = {
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": len(completion.tokens),
        "tokens": completion.tokens,
    }
    if wanted.reports_logprobs:
        entry["logprobs"] = [o.finite(logprob) for logprob in completion.logprobs]
        entry["top_logprobs"] = [
            [
                {"token": token, "text": render.piece(tokenizer, token), "logprob": o.finite(logprob)}
                for token, logprob in step.items()
            ]
            for step in completion.top_logprobs
        ]
    sampling = vars(wanted.resolve(loaded.model.defaults, text))
    limits = {"max_tokens": wanted.max_tokens, "stop": wanted.stop, "dtype": loaded.dtype}
    return entry | {"model": loaded.name, "settings": sampling | limits}
