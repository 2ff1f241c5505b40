"""`gemwright see`: ask about an image."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemwright.cli import options as o
from gemwright.cli import render
from gemwright.errors import GemwrightError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gemwright.cli.loading import Loaded
    from gemwright.generate.output import Stream
    from gemwright.images.locations import Found
    from gemwright.images.masks import MaskDecoder


MAX_IMAGE_BYTES = 512 * 2**20
"""Maximum size of an image file on standard input, in bytes."""


def see(
    image: Annotated[
        str, typer.Argument(metavar="IMAGE", help="PNG, JPEG, WebP, GIF, BMP or TIFF file; - for standard input.")
    ],
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="A question, or a task such as 'caption en' or 'detect cat ; dog'.")
    ],
    model: o.ModelOption = "paligemma-3b-mix-224",
    draw: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the image with the answer's boxes and masks drawn (.png, .jpg or .webp)."
        ),
    ] = None,
    mask_decoder: Annotated[
        Path | None, typer.Option(metavar="NPZ", help="PaliGemma's mask decoder, vae-oid.npz.")
    ] = None,
    pan_and_scan: Annotated[
        bool, typer.Option("--pan-and-scan", help="Also pass crops of an elongated image (Gemma 3).")
    ] = False,
    max_tokens: o.MaxTokensOption = 256,
    temperature: o.TemperatureOption = None,
    top_k: o.TopKOption = None,
    top_p: o.TopPOption = None,
    seed: o.SeedOption = None,
    stop: o.StopOption = None,
    adapter: o.AdapterOption = None,
    dtype: o.DTypeOption = None,
    variant: o.VariantOption = None,
    threads: o.ThreadsOption = None,
    as_json: o.JsonOption = False,
    verbose: o.VerboseOption = False,
) -> None:
    """Ask about an image, or detect and segment objects in it.

    PaliGemma gives short answers, or boxes and masks, which --draw draws and --json lists. Gemma 3 gives long answers.
    """
    from gemwright.cli.generate import announce_settings, record, write_stream
    from gemwright.cli.loading import load, reading

    if draw is not None:
        o.check_output(draw)
    with reading(model, dtype) as prefetch:
        wanted = o.settings(
            max_tokens=max_tokens, seed=seed, stop=stop, temperature=temperature, top_k=top_k, top_p=top_p
        )
        from gemwright.images.drawing import image_format
        from gemwright.images.load import load_image
        from gemwright.images.locations import parse
        from gemwright.images.masks import MaskDecoder

        if draw is not None:
            image_format(draw)
        pixels = load_image(_read_image() if image == "-" else image)  # before the model, so that errors come early
        decoder = MaskDecoder.load(mask_decoder) if mask_decoder else None
        loaded = load(
            model, dtype=dtype, variant=variant, verbose=verbose, adapters=o.adapters(adapter), prefetch=prefetch
        )
    if verbose:
        announce_settings(loaded.model, wanted)
    stream = _ask(loaded, pixels, render.argument(prompt), wanted, pan_and_scan)
    completion = write_stream(stream, silent=as_json, loaded=loaded if verbose else None)
    found = parse(completion.text)
    if as_json:
        objects = [_record(item, pixels) for item in found]
        render.write_json({"prompt": prompt, "found": objects} | record(loaded, completion, wanted))
    else:
        render.write("\n")
    if draw:
        _draw(pixels, found, decoder, draw)


def _read_image() -> bytes:
    """Return the image on standard input."""
    content = b"" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read(MAX_IMAGE_BYTES + 1)
    if not content:
        raise o.no_text("image")
    if len(content) > MAX_IMAGE_BYTES:
        raise GemwrightError(f"The image on standard input is larger than {render.size(MAX_IMAGE_BYTES)}; reduce it.")
    return content


def _ask(loaded: "Loaded", image: "NDArray[np.uint8]", prompt: str, wanted: o.Settings, crops: bool) -> "Stream":
    from gemwright.text.chat import Message

    model, image_prompter = loaded.model, loaded.model.image_prompter
    if image_prompter is None:
        raise GemwrightError(
            f"{loaded.name} does not accept images; use a vision model such as paligemma2-3b-mix-224 or gemma-3-4b-it."
        )
    options = wanted.options()
    options["pan_and_scan"] = crops
    if model.tuned and image_prompter.style == "inline":
        return model.stream([Message("user", prompt, (image,))], **options)
    return model.stream(prompt, [image], **options)


def _record(found: "Found", image: "NDArray[np.uint8]") -> dict[str, Any]:
    height, width, _ = image.shape
    top, left, bottom, right = found.box.pixels(height, width)
    return found.as_dict() | {"pixels": {"top": top, "left": left, "bottom": bottom, "right": right}}


def _draw(image: "NDArray[np.uint8]", found: "list[Found]", decoder: "MaskDecoder | None", path: Path) -> None:
    from gemwright.images.drawing import draw, save_image
    from gemwright.images.masks import place_masks

    if not found:
        render.warn(f"The answer has no boxes, so {path} is the image alone; use a prompt such as 'detect cat'.")
    if decoder is None and any(item.mask_codes for item in found):
        render.warn("Masks are not drawn without PaliGemma's vae-oid.npz; pass it with --mask-decoder.")
    save_image(draw(image, found, place_masks(decoder, found, *image.shape[:2])), path)
