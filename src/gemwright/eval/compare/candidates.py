"""What is compared: models of this package and models behind an API, each with its settings."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gemwright.errors import GemwrightError
from gemwright.eval.endpoint import KEY_VARIABLE, Endpoint, parse_endpoint
from gemwright.options import refuse_unknown

_SAMPLING = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "seed": int,
}
_SETTINGS = re.compile(r"(?:,\w+=[^,]*)*\Z")
"""The settings after the name of a model, which may have commas of its own."""


@dataclass(frozen=True)
class Candidate:
    """A model with its settings.

    Attributes:
        label: As the user wrote it.
        model: Path, name or hub id of a model of this package, or an endpoint.
        dtype: Data type, as `gemwright.load` takes it; only of a model of this package.
        sampling: Sampling parameters that differ from the model's own.
    """

    label: str
    model: str | Endpoint
    dtype: str | None = None
    sampling: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def identity(self) -> list[Any]:
        """What its answers depend on; that of a file or folder changes with its files."""
        if isinstance(self.model, Endpoint):
            return [self.model.url, self.model.model, dict(self.sampling)]
        return [self.model, _state(Path(self.model).expanduser()), self.dtype, dict(self.sampling)]


def parse_candidate(text: str) -> Candidate:
    """Return the candidate that a user wrote as `MODEL[,SETTING=VALUE...]`.

    MODEL is a path, name or hub id, or an endpoint as `http://HOST:PORT/v1#MODEL`. A setting is a sampling parameter;
    `dtype` of a model of this package; or `key` of an endpoint, the environment variable with its API key.

    Raises:
        GemwrightError: A setting is unknown or of another type, or an endpoint is not complete.
    """
    found = _SETTINGS.search(text)
    assert found
    model, given = text[: found.start()], dict(re.findall(r",(\w+)=([^,]*)", found[0]))
    is_endpoint = model.startswith(("http://", "https://"))
    own = "key" if is_endpoint else "dtype"
    refuse_unknown(given, (*_SAMPLING, own))
    named = given.pop(own, None)
    sampling = {name: _convert(name, value) for name, value in given.items()}
    if is_endpoint:
        return Candidate(text, parse_endpoint(model, named or KEY_VARIABLE), None, sampling)
    return Candidate(text, model, named, sampling)


def parse_candidates(texts: Sequence[str]) -> list[Candidate]:
    """Return at least two different candidates.

    Raises:
        GemwrightError: There are fewer, two are equal, or as for `parse_candidate`.
    """
    if len(set(texts)) < max(2, len(texts)):
        raise GemwrightError("Give two or more different models; settings may differ, as in NAME,temperature=0.")
    return [parse_candidate(text) for text in texts]


def _convert(name: str, value: str) -> float:
    try:
        return _SAMPLING[name](value)
    except ValueError:
        raise GemwrightError(f"{name}={value:.40} is not a number; write it as in {name}=1.") from None


def _state(path: Path) -> list[Any]:
    """Return names, sizes and times of the files of a model on this machine."""
    if not path.exists():
        return []
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
