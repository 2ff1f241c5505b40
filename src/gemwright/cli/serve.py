"""`gemwright serve`: answer requests over HTTP."""

import ipaddress
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemwright.cli import options as o
from gemwright.cli import render
from gemwright.cli.screening import check_options, load_screening
from gemwright.errors import GemwrightError
from gemwright.runtime.installation import require_extra

if TYPE_CHECKING:
    from gemwright.serve.models import ModelRegistry, ServedModel
    from gemwright.serve.screening import ServedShield

KEY_VARIABLE = "GEMWRIGHT_API_KEY"
PORT_VARIABLE = "AIP_HTTP_PORT"  # of Vertex AI, whose containers listen on all addresses
DEFAULT_MODEL = "gemma-3-270m"
_PACKAGES = ("starlette", "uvicorn", "msgspec", "prometheus_client", "llguidance")


def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help=f"Path, name or hub id; may be repeated. The first is the default. [default: {DEFAULT_MODEL}]",
            autocompletion=o.complete_model,
        ),
    ] = None,
    served_name: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Name by which requests select a model; once for each --model, in order."),
    ] = None,
    host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Address to listen on; 0.0.0.0 for all. [default: 127.0.0.1]")
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", envvar=PORT_VARIABLE, help="Port; 0 for any that is free.")
    ] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY", help=f"Require this key; may be repeated. {KEY_VARIABLE} may have one, unseen by others."
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Require one of the keys of FILE, one a line.")
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Let web pages of this origin use the server; * for any; may be repeated."),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(min=16, metavar="N", help="Maximum number of tokens of a prompt with its text. [default: 4096]"),
    ] = None,
    slots: Annotated[
        int | None, typer.Option(min=1, max=256, metavar="N", help="Number of texts at a time. [default: 16]")
    ] = None,
    max_queue: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Number of texts that may wait. [default: 256]")
    ] = None,
    shutdown_timeout: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Time for running requests after SIGTERM.")
    ] = 30.0,
    no_page: Annotated[bool, typer.Option("--no-page", help="Do not serve the web page.")] = False,
    mask_decoder: Annotated[
        Path | None,
        typer.Option(metavar="NPZ", help="PaliGemma's mask decoder, vae-oid.npz, for the web page."),
    ] = None,
    shield: o.ShieldOption = None,
    policy: o.PolicyOption = None,
    dtype: o.DTypeOption = None,
    mesh: o.ModelMeshOption = None,
    threads: o.ThreadsOption = None,
) -> None:
    """Serve models over HTTP.

    Speaks the APIs of OpenAI, Ollama, Anthropic and others; a web page to chat is at /. Listens on this machine only
    unless --host is given.
    """
    names = model or [DEFAULT_MODEL]
    if served_name and len(served_name) != len(names):
        raise GemwrightError(f"--served-name is given {len(served_name)} times for {len(names)} models; name each.")
    check_options(shield, policy)
    keys = _keys(api_key or [], api_key_file)
    address = host or ("0.0.0.0" if PORT_VARIABLE in os.environ else "127.0.0.1")
    given = {"context": context, "slots": slots, "waiting": max_queue}
    limits = {name: value for name, value in given.items() if value is not None}
    served_names = served_name or [_short_name(name) for name in names]

    require_extra("serve", _PACKAGES, "Serving")
    from gemwright.images.masks import MaskDecoder
    from gemwright.serve.server import Server, open_port
    from gemwright.serve.settings import Settings

    settings = Settings(
        api_keys=keys,
        cors_origins=tuple(cors_origin or ()),
        page=not no_page,
        mask_decoder=None if mask_decoder is None else MaskDecoder.load(mask_decoder),
    )
    listener = open_port(address, port)
    bound = f"[{address}]" if ":" in address else address
    render.note(f"Listening on http://{bound}:{listener.getsockname()[1]}")
    if not keys and not _is_loopback(address):
        render.warn("Anyone in the network can use the server; require a key with --api-key-file.")
    load = partial(_load, names, served_names, dtype, mesh, limits, shield, policy)
    Server(settings, load, shutdown_timeout).run_until_signal(listener)


def _keys(given: list[str], file: Path | None) -> tuple[str, ...]:
    """Return the keys of the options and the environment.

    Raises:
        GemwrightError: A key is empty, or the file has none: the server would be open.
    """
    keys = [*given, *([os.environ[KEY_VARIABLE]] if KEY_VARIABLE in os.environ else [])]
    if file is not None:
        lines = [line.strip() for line in render.read_file(file).splitlines()]
        lines = [line for line in lines if line and not line.startswith("#")]
        if not lines:
            raise GemwrightError(f"{file} has no keys; write one on each line.")
        keys += lines
    if not all(key.strip() for key in keys):
        raise GemwrightError(f"An API key is empty; pass another, or unset {KEY_VARIABLE}.")
    return tuple(key.strip() for key in keys)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _load(
    names: list[str],
    served_names: list[str],
    dtype: str | None,
    mesh: str | None,
    limits: dict[str, int],
    shield: str | None,
    policy: Path | None,
) -> "ModelRegistry":
    """Load the shield and the first model; the others are loaded when they are first asked for."""
    from gemwright.serve.models import ModelRegistry, ModelSource

    screening = _start_shield(shield, policy)
    sources = [
        ModelSource(
            served, partial(_start, name, served, dtype, mesh, limits, screening), (name,) if name != served else ()
        )
        for name, served in zip(names, served_names, strict=True)
    ]
    sources[0].served = sources[0].start()
    render.note(f"Ready: {', '.join(source.name for source in sources)}")
    return ModelRegistry(sources)


def _start_shield(shield: str | None, policy: Path | None) -> "ServedShield | None":
    """Load a shield and compile its programs."""
    from gemwright.serve.screening import ServedShield

    loaded = load_screening(shield, policy).shield
    if loaded is None:
        return None
    for _ in loaded.warm_up():
        render.status("Compiling programs of the shield ...")
    render.clear_status()
    return ServedShield(loaded)


def _start(
    name: str,
    served_name: str,
    dtype: str | None,
    mesh: str | None,
    limits: dict[str, int],
    shield: "ServedShield | None",
) -> "ServedModel":
    """Load a model, compile its programs and start its scheduler."""
    from gemwright.cli.loading import load
    from gemwright.serve.batching.scheduler import Limits, Scheduler
    from gemwright.serve.models import ServedModel

    loaded = load(name, dtype=dtype, variant=None, verbose=False, mesh=mesh)
    scheduler = Scheduler(loaded.model, Limits(**limits))
    for _ in scheduler.warm_up():
        render.status(f"Compiling programs of {served_name} ...")
    render.clear_status()
    scheduler.start()
    aliases = (name,) if name != served_name else ()
    return ServedModel(served_name, loaded.model, scheduler, aliases=aliases, shield=shield)


def _short_name(name: str) -> str:
    """Return the name of a model: of a path its last part, without `.gguf`."""
    path = Path(name)
    return path.absolute().name.removesuffix(".gguf") if path.exists() else name
