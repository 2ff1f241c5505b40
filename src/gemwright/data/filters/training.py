"""Labelled records, from which classifiers are trained."""

from collections.abc import Sequence
from pathlib import Path

from gemwright.data.filters.recipe import Recipe
from gemwright.data.filters.texts import find_fields, join_texts
from gemwright.data.sources import find_files, read_records


def read_labelled(
    inputs: Sequence[Path], text_field: str | None, label: tuple[str, tuple[str, ...]]
) -> tuple[list[str], list[bool]]:
    """Return the texts of records, and whether each has one of the values of the label.

    Raises:
        DataError: A record is malformed or has no text.
    """
    recipe = Recipe(steps=(), text_field=text_field, label=label)
    texts: list[str] = []
    labels: list[bool] = []
    for record in read_records(find_files(inputs)):
        texts.append(join_texts(record.fields, find_fields(record, text_field)))
        labels.append(recipe.is_labelled(record))
    return texts, labels
