"""`gemwright sign`: sign a release, and verify it."""

from pathlib import Path
from typing import Annotated

import typer

from gemwright.cli import render
from gemwright.errors import GemwrightError


def sign(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder that `gemwright card` has written.")],
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Sign with this private key (EC, PEM); writes model.sig.")
    ] = None,
    check: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Verify the signature with this public key (PEM).")
    ] = None,
) -> None:
    """Sign a release with a key, or verify it, offline.

    The signature is one of OpenSSF's model-signing, over all files of the folder.
    """
    from gemwright.release.publishing import signing

    if (key is None) == (check is None):
        raise GemwrightError("There is no key; add --key FILE to sign, or --check FILE to verify.")
    if key is not None:
        render.write(f"{signing.sign(folder, key)}\n")
    elif check is not None:
        signing.verify(folder, check)
        render.write(f"{folder}: the signature holds.\n")
