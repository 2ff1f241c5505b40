"""Sign a folder with a key, and verify it, offline.

The signature is that of OpenSSF's model-signing (a Sigstore bundle), which its own command line also reads and writes.
"""

from pathlib import Path
from typing import Any

from gemwright.errors import GemwrightError
from gemwright.release.publishing.provenance import KAGGLE, SIGNATURE, list_files
from gemwright.runtime.installation import require_extra

PACKAGES = ("model_signing", "OpenSSL")
"""Packages of the extra `release` that signing needs."""


def sign(folder: Path, key: Path) -> Path:
    """Sign all files of a folder, and return the signature in it.

    Args:
        folder: The folder.
        key: An elliptic-curve private key in PEM, without a password.

    Raises:
        GemwrightError: The key is of another kind, or a file cannot be read.
    """
    require_extra("release", PACKAGES, "Signing")
    from model_signing import hashing, signing  # pyright: ignore

    list_files(folder)
    signature = folder / SIGNATURE
    _require_file(key, "a private key in PEM")
    try:
        ignored: Any = hashing.Config().set_ignored_paths(paths=[SIGNATURE, *KAGGLE])  # pyright: ignore
        config: Any = signing.Config().use_elliptic_key_signer(private_key=key)  # pyright: ignore
        config.set_hashing_config(ignored).sign(folder, signature)
    except (ValueError, TypeError, OSError) as error:
        raise GemwrightError(
            f"{folder} cannot be signed with {key} ({error!s:.200}); give an EC key in PEM."
        ) from error
    return signature


def verify(folder: Path, key: Path) -> None:
    """Verify the signature of a folder.

    Args:
        folder: The folder.
        key: The public key in PEM.

    Raises:
        GemwrightError: The signature is missing, of another key, or a file was changed, added or removed.
    """
    require_extra("release", PACKAGES, "Verifying a signature")
    from model_signing import verifying  # pyright: ignore

    signature = folder / SIGNATURE
    _require_file(key, "a public key in PEM")
    _require_file(signature, "a release that `gemwright sign` has signed")
    try:
        config: Any = verifying.Config().use_elliptic_key_verifier(public_key=key)  # pyright: ignore
        config.verify(folder, signature)
    except Exception as error:  # besides ValueError, whatever a damaged bundle raises in its parsers
        raise GemwrightError(
            f"The signature of {folder} does not hold ({error!s:.300}); fetch the files again."
        ) from error


def _require_file(path: Path, what: str) -> None:
    if not path.is_file():
        raise GemwrightError(f"{path} is no file; give {what}.")
