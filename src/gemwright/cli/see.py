"""`gemwright see`: ask about a picture."""

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


def see(
    picture: Annotated[str, typer.Argument(metavar="PICTURE", help="A PNG, JPEG, WebP, GIF, BMP or TIFF file.")],
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="Such as 'caption en', 'detect cat ; dog', or any question.")
    ],
    model: o.ModelOption = "paligemma-3b-mix-224",
    draw: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the places that the answer names; write this PNG.")
    ] = None,
    mask_decoder: Annotated[
        Path | None, typer.Option(metavar="NPZ", help="PaliGemma's vae-oid.npz, which outlines are drawn with.")
    ] = None,
    pan_and_scan: Annotated[
        bool, typer.Option("--pan-and-scan", help="Show Gemma 3 crops too, of a picture far from square.")
    ] = False,
    max_tokens: o.MaxTokensOption = 256,
    temperature: o.TemperatureOption = None,
    top_k: o.TopKOption = None,
    top_p: o.TopPOption = None,
    seed: o.SeedOption = None,
    dtype: o.DTypeOption = None,
    variant: o.VariantOption = None,
    as_json: o.JsonOption = False,
    verbose: o.VerboseOption = False,
) -> None:
    """Ask about a picture, or find things in it.

    Ask for a caption, put a question, or name objects to detect or segment and text to read.
    PaliGemma answers in a few words, or with places, which --draw shows and --json lists. Gemma 3 answers at length.
    """
    wanted = o.settings(max_tokens=max_tokens, seed=seed, temperature=temperature, top_k=top_k, top_p=top_p)
    from gemwright.cli.generate import announce_settings, record, write_stream
    from gemwright.cli.loading import load
    from gemwright.images.load import load_image
    from gemwright.images.locations import parse
    from gemwright.images.masks import MaskDecoder

    image = load_image(picture)  # what is wrong with it is said before the model is loaded
    decoder = MaskDecoder.load(mask_decoder) if mask_decoder else None
    loaded = load(model, dtype=dtype, variant=variant, verbose=verbose)
    if verbose:
        announce_settings(loaded.model, wanted)
    stream = _ask(loaded, image, render.argument(prompt), wanted, pan_and_scan)
    completion = write_stream(stream, silent=as_json, loaded=loaded if verbose else None)
    found = parse(completion.text)
    if as_json:
        places = [_record(item, image) for item in found]
        render.write_json({"prompt": prompt, "found": places} | record(loaded, completion, wanted))
    else:
        render.write("\n")
    if draw:
        _draw(image, found, decoder, draw)


def _ask(loaded: "Loaded", image: "NDArray[np.uint8]", prompt: str, wanted: o.Settings, crops: bool) -> "Stream":
    from gemwright.text.chat import Message

    model, image_prompter = loaded.model, loaded.model.image_prompter
    if image_prompter is None:
        raise GemwrightError(
            f"{loaded.name} sees no pictures; take a model that does, such as paligemma2-3b-mix-224 or gemma-3-4b-it."
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


def _draw(image: "NDArray[np.uint8]", found: "list[Found]", decoder: "MaskDecoder | None", place: Path) -> None:
    from gemwright.images.drawing import draw, save_png
    from gemwright.images.masks import place_masks

    if not found:
        render.warn(f"The answer names no place, so {place} shows the picture alone; ask to 'detect ...' something.")
    if decoder is None and any(item.mask_codes for item in found):
        render.warn("The outlines are not drawn, as that needs PaliGemma's vae-oid.npz; give it with --mask-decoder.")
    save_png(draw(image, found, place_masks(decoder, found, *image.shape[:2])), place)
