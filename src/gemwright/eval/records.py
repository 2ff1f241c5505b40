"""Records of benchmarks as people publish them, rewritten with the fields that lm-eval's tasks read.

Three forms are common: that of the benchmark's authors, that of the hub (huggingface.co/datasets), and that of
MosaicML's llm-foundry (query, choices and gold; context, answer and aliases).
"""

import bz2
import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

from gemwright.data.sources import Place, Record, read_json_lines, read_records
from gemwright.errors import DataError

Fields = dict[str, Any]
_LETTERS = "ABCDEFGHIJKLMNOP"
_NUMBERS = "123456789"


def read(path: Path) -> Iterator[Record]:
    """Yield the records of a file: those that `gemwright.data` reads, tables without names of columns, and others.

    A row without names has its cells under "0", "1", ...; an object of objects, as DROP's, yields its values.

    Raises:
        DataError: A record is malformed.
    """
    name = path.name.lower()
    if name.endswith(".txt.bz2"):
        yield from _read_six_lines(path)
    elif name.endswith((".csv", ".tsv")) and not _has_names(path):
        with path.open(encoding="utf-8-sig", newline="") as lines:
            for number, row in enumerate(csv.reader(lines, delimiter=_delimiter(path)), 1):
                yield Record(Place(path, number, "row"), {str(index): cell for index, cell in enumerate(row)})
    elif name.endswith(".json") and path.read_bytes()[:4096].removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{":
        yield from _read_object(path)
    else:
        yield from read_records([path])


def _read_object(path: Path) -> Iterator[Record]:
    """Read an object: its list of examples if it has one, else its values; or lines of JSON."""
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError:
        yield from read_json_lines(path)
        return
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON in UTF-8; correct the file.") from error
    listed = next((value for value in document.values() if isinstance(value, list)), None)
    for number, item in enumerate(document.values() if listed is None else listed, 1):
        place = Place(path, number, "item")
        if not isinstance(item, dict):
            raise place.error("this is not an object with named fields; correct the file.")
        yield Record(place, cast(Fields, item))


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _has_names(path: Path) -> bool:
    """Return whether the first row of a table names its columns: short words, none of them twice or a number."""
    with path.open(encoding="utf-8-sig", newline="") as lines:
        row = next(csv.reader(lines, delimiter=_delimiter(path)), [])
    words = [cell.strip() for cell in row]
    usual = {"question", "answer", "text", "label", "prompt", "sentence", "Question"}
    return len(set(words)) == len(words) and bool(usual & set(words))


def _read_six_lines(path: Path) -> Iterator[Record]:
    """Read HellaSwag as llama.cpp's perplexity tool does: context, number of the right ending, four endings."""
    with bz2.open(path, "rt", encoding="utf-8") as lines:
        number = 1
        while rows := [line.rstrip("\n") for line in islice(lines, 6)]:
            if len(rows) < 6 or not rows[1].strip().isdigit():
                raise DataError(f"{path}, line {number}: this is not a context, a number and four endings.")
            yield Record(Place(path, number), {"query": rows[0], "gold": int(rows[1]), "choices": rows[2:]})
            number += 6


def get(record: Record, *names: str) -> Any:
    """Return the first field of a record that is there, of several names; a name may lead into objects: `a.b`.

    Raises:
        DataError: None is there.
    """
    for name in names:
        value: Any = record.fields
        for part in name.split("."):
            value = cast(Mapping[str, Any], value).get(part) if isinstance(value, Mapping) else None
        if value is not None:
            return value
    raise record.place.error(f"there is no field {' or '.join(names)}; correct the record.")


def has(record: Record, name: str) -> bool:
    """Return whether a record has a field."""
    return record.fields.get(name) is not None


def index_of(record: Record, answer: Any, labels: Sequence[str]) -> int:
    """Return the place of an answer among labels: its label, or a number from 0."""
    if isinstance(answer, str) and answer in labels:
        return labels.index(answer)
    if str(answer).isdigit() and int(answer) < len(labels):
        return int(answer)
    raise record.place.error(f"the answer {str(answer)!r:.50} is none of the {len(labels)} choices.")


def choices_of(record: Record) -> tuple[str, list[str], int]:
    """Return the question, the choices and the place of the right one."""
    if "0" in record.fields:  # a table: question, choices, letter
        question, *choices, answer = record.fields.values()
        return question, choices, index_of(record, answer.strip(), _LETTERS[: len(choices)])
    if has(record, "query"):
        choices = cast(list[str], get(record, "choices"))
        return str(get(record, "query")).removeprefix("Question: "), choices, int(get(record, "gold"))
    question = get(record, "question.stem", "question_stem", "question")
    if has(record, "A"):
        choices = [record.fields[letter] for letter in _LETTERS if has(record, letter)]
        return question, choices, index_of(record, get(record, "answer", "target"), _LETTERS[: len(choices)])
    given = get(record, "question.choices", "choices")
    if isinstance(given, Mapping):
        texts, labels = cast(list[str], given["text"]), cast(list[str], given["label"])
    elif given and isinstance(given[0], Mapping):
        texts, labels = [one["text"] for one in given], [one["label"] for one in given]
    else:
        texts, labels = cast(list[str], given), list(_LETTERS[: len(given)])
    return question, texts, index_of(record, get(record, "answerKey", "answer", "label", "gold"), labels)


def _lettered(record: Record, name: str) -> Fields:
    question, choices, answer = choices_of(record)
    labels = list(_LETTERS[: len(choices)])
    return {name: question, "choices": {"text": choices, "label": labels}, "answerKey": labels[answer]}


def convert_arc(record: Record) -> Fields:
    """ARC and CommonsenseQA."""
    return _lettered(record, "question")


def convert_openbookqa(record: Record) -> Fields:
    """OpenBookQA."""
    return _lettered(record, "question_stem")


def convert_mmlu(record: Record) -> Fields:
    """MMLU."""
    question, choices, answer = choices_of(record)
    return {"question": question, "choices": choices, "answer": answer}


def convert_hellaswag(record: Record) -> Fields:
    """HellaSwag; the result is processed as lm-eval's task does it."""
    if has(record, "query"):
        question, choices, answer = choices_of(record)
        return {"query": question, "choices": choices, "label": answer}
    from lm_eval.tasks.hellaswag.utils import preprocess

    context = f"{get(record, 'ctx_a')} {get(record, 'ctx_b').capitalize()}"
    query = preprocess(f"{get(record, 'activity_label')}: {context}")
    return {
        "query": query,
        "choices": [preprocess(ending) for ending in get(record, "endings", "ending_options")],
        "label": int(get(record, "label")),
    }


def convert_piqa(record: Record) -> Fields:
    """PIQA."""
    if has(record, "query"):
        query, choices, answer = choices_of(record)
        return {"goal": query.removesuffix("\nAnswer:"), "sol1": choices[0], "sol2": choices[1], "label": answer}
    return {name: get(record, name) for name in ("goal", "sol1", "sol2")} | {"label": int(get(record, "label"))}


def convert_winogrande(record: Record) -> Fields:
    """WinoGrande."""
    if has(record, "context_options"):
        options, rest = cast(list[str], get(record, "context_options")), str(get(record, "continuation"))
        same = next((place for place, (a, b) in enumerate(zip(*options, strict=False)) if a != b), 0)
        start = options[0][:same].rpartition(" ")[0]
        words = [option[len(start) :].strip() for option in options]
        sentence = f"{start} _ {rest.strip()}".strip()
        return {"sentence": sentence, "option1": words[0], "option2": words[1], "answer": str(get(record, "gold") + 1)}
    fields = {name: get(record, name) for name in ("sentence", "option1", "option2")}
    return fields | {"answer": _NUMBERS[index_of(record, str(get(record, "answer", "label")), ("1", "2"))]}


def convert_siqa(record: Record) -> Fields:
    """Social IQa."""
    if has(record, "query"):
        query, choices, answer = choices_of(record)
        context = query.removeprefix("Context: ").partition("\n")[0]
        given = {"context": context, "question": query.partition("Question: ")[2].removesuffix("\nAnswer:")}
        return given | dict(zip(("answerA", "answerB", "answerC"), choices, strict=True)) | {"label": str(answer + 1)}
    names = ("context", "question", "answerA", "answerB", "answerC")
    label = str(get(record, "label", "correct"))
    label = label if label in "123" else _NUMBERS[index_of(record, label, "ABC")]
    return {name: get(record, name) for name in names} | {"label": label}


def convert_boolq(record: Record) -> Fields:
    """BoolQ."""
    answer = get(record, "label", "answer")
    label = int(str(answer).lower() in ("1", "true", "yes"))
    return {"passage": get(record, "passage"), "question": get(record, "question"), "label": label}


def _aliases(record: Record) -> list[str]:
    answer = get(record, "answer")
    if isinstance(answer, Mapping):
        found = [*cast(list[str], answer.get("aliases") or answer.get("Aliases") or [])]
        value = answer.get("value") or answer.get("Value")
        return list(dict.fromkeys([value, *found] if value else found))
    listed = cast(list[str], answer) if isinstance(answer, list) else [answer]
    return list(dict.fromkeys([*listed, *(record.fields.get("aliases") or ())]))


def _question(record: Record) -> str:
    text = str(get(record, "question", "Question", "context"))
    return text.removeprefix("Question: ").removesuffix("\nAnswer:")


def convert_triviaqa(record: Record) -> Fields:
    """TriviaQA, closed book."""
    # lm-eval's prompt adds a question mark.
    return {"question": _question(record).removesuffix("?"), "answer": {"aliases": _aliases(record)}}


def convert_nq_open(record: Record) -> Fields:
    """Natural Questions, open domain."""
    return {"question": _question(record).removesuffix("?"), "answer": _aliases(record)}


def convert_lambada(record: Record) -> Fields:
    """LAMBADA."""
    if has(record, "text"):
        return {"text": get(record, "text")}
    return {"text": f"{get(record, 'context').rstrip()} {get(record, 'continuation').strip()}"}


def convert_truthfulqa(record: Record) -> Fields:
    """TruthfulQA, with the answers of both forms of choice. The right ones come first, as in the published task."""
    if has(record, "mc1_targets"):
        return {name: get(record, name) for name in ("question", "mc1_targets", "mc2_targets")}
    best = _sentence(get(record, "Best Answer"))
    right, wrong = (_sentences(get(record, name)) for name in ("Correct Answers", "Incorrect Answers"))
    right = list(dict.fromkeys([best, *right]))

    def targets(true: list[str]) -> Fields:
        return {"choices": [*true, *wrong], "labels": [1] * len(true) + [0] * len(wrong)}

    return {"question": get(record, "Question"), "mc1_targets": targets([best]), "mc2_targets": targets(right)}


def _sentence(text: str) -> str:
    text = text.strip()
    return text if not text or text.endswith((".", "?", "!")) else f"{text}."


def _sentences(text: str) -> list[str]:
    return [_sentence(part) for part in text.split(";") if part.strip()]


def convert_math(record: Record) -> Fields:
    """MATH."""
    subject = get(record, "type", "subject")
    return {name: get(record, name) for name in ("problem", "solution", "level")} | {"type": subject}


def convert_mgsm(record: Record) -> Fields:
    """MGSM: a question and a number."""
    if "0" in record.fields:
        question, number, *_ = record.fields.values()
        return {"question": question, "answer": None, "answer_number": int(number.replace(",", ""))}
    number = get(record, "answer_number", "answer")
    return {"question": get(record, "question"), "answer": None, "answer_number": int(str(number).replace(",", ""))}


def convert_gsm8k(record: Record) -> Fields:
    """GSM8K."""
    return {name: get(record, name) for name in ("question", "answer")}


def convert_bbh(record: Record) -> Fields:
    """BIG-Bench Hard."""
    return {name: get(record, name) for name in ("input", "target")}
