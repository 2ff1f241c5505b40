"""The memorization audit: distances and intervals against other code, rates of models whose continuations are known."""

import itertools
import json
import random
import runpy
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

import gemwright
from gemwright.errors import GemwrightError
from gemwright.eval.memorization import BATCH, Settings, audit, make_rate
from gemwright.eval.memorization_extract import EditDistances, extract, extract_exact
from gemwright.eval.memorization_sample import Passage, Sample, draw_samples
from tests.documents import ROOT
from tests.tiny.gguf import write_tiny_gguf

pytestmark = pytest.mark.usefixtures("quick_compilation")
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="module")
def model(tiny: Path) -> gemwright.Model:
    return gemwright.load(tiny)


def edit_distance(one: Sequence[int], other: Sequence[int]) -> int:
    """The whole matrix of Levenshtein's distance, by its definition."""
    table = np.zeros((len(one) + 1, len(other) + 1), int)
    table[0], table[:, 0] = np.arange(len(other) + 1), np.arange(len(one) + 1)
    for i, a in enumerate(one, 1):
        for j, b in enumerate(other, 1):
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (a != b))
    return int(table[-1, -1])


def test_edit_distances():
    numbers = np.random.default_rng(0)
    texts = numbers.integers(0, 4, (60, 20)).astype(np.int32)
    others = np.where(numbers.random(texts.shape) < 0.2, numbers.integers(0, 4, texts.shape), np.roll(texts, 1, axis=1))
    others[:20] = numbers.integers(0, 4, (20, 20))
    others[20:30] = texts[20:30]
    distances, bounds = EditDistances(texts), list[np.ndarray]()
    for tokens in others.T:
        distances.push(tokens)
        bounds.append(distances.least)
    expected = [edit_distance(*pair) for pair in zip(texts.tolist(), others.tolist(), strict=True)]
    assert bounds[-1].tolist() == expected
    assert expected[20:30] == [0] * 10
    assert len(set(expected)) > 5
    assert (np.diff(bounds, axis=0) >= 0).all()  # a bound from below that only rises


def test_intervals():
    for count, documents in [(0, 1), (1, 1), (0, 300), (3, 300), (17, 40), (300, 300), (1, 10_000)]:
        expected = binomtest(count, documents).proportion_ci(method="wilson")
        rate = make_rate(count, documents)
        np.testing.assert_allclose((rate.low, rate.high), (expected.low, expected.high), atol=1e-12)
        assert rate.low <= rate.share <= rate.high
    assert (make_rate(0, 0).low, make_rate(0, 0).high) == (0, 1)


def known_passages(model: gemwright.Model) -> list[Passage]:
    """Continuations that are the model's own, with up to 11 or with 60 tokens replaced, inserted or left out."""
    draw = random.Random(1)
    prompts = [[2, *draw.choices(range(330, 380), k=20)] for _ in range(28)]
    passages: list[Passage] = []
    for index, completion in enumerate(model.generate(prompts, max_tokens=60, temperature=0.0)):
        ids = list(completion.tokens)
        for _ in range(index // 2 if index < 24 else 60):
            place = draw.randrange(50)
            match draw.randrange(3):
                case 0:
                    ids[place] = draw.randrange(330, 380)
                case 1:
                    ids.insert(place, draw.randrange(330, 380))
                case _:
                    del ids[place]
                    ids.append(draw.randrange(330, 380))
        passages.append(Passage("own", str(index), np.array([*prompts[index], *ids[:50]], np.int32), 21))
    return passages


def test_known_continuations(model: gemwright.Model):
    passages = known_passages(model)
    whole = [one.tokens for one in model.generate([p.prompt for p in passages], max_tokens=50, temperature=0.0)]
    expected = [edit_distance(p.continuation, tokens) for p, tokens in zip(passages, whole, strict=True)]
    found = extract(model.engine, passages, most_edits=5)
    assert [one.edits for one in found] == [edits if edits <= 5 else None for edits in expected]
    assert expected[:2] == [0, 0]
    assert sum(0 < edits <= 5 for edits in expected) > 3 < sum(edits > 5 for edits in expected)
    for one, tokens in zip(found, whole, strict=True):
        assert one.generated == tokens[: len(one.generated)]
    exact = extract_exact(model.engine, passages)
    assert [one.edits == 0 for one in exact] == [edits == 0 for edits in expected]
    hopeless = [passage for passage, edits in zip(passages, expected, strict=True) if edits > 20]
    assert max(len(one.generated) for one in extract(model.engine, hopeless, most_edits=5)) < 50  # stops early


def write(path: Path, records: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def text(draw: random.Random, words: int) -> str:
    return " ".join("".join(draw.choices(LETTERS, k=draw.randint(1, 7))) for _ in range(words))


def test_samples(model: gemwright.Model, tmp_path: Path):
    """Passages are the beginnings of whole documents, of each source, and those too short are counted."""
    draw = random.Random(2)
    records = [{"text": text(draw, draw.choice((2, 6, 12, 4000))), "source": draw.choice("ab")} for _ in range(40)]
    files = [write(tmp_path / "one.jsonl", records), tmp_path / "two.txt"]
    files[1].write_text(text(draw, 30))
    whole = [model.tokenizer.encode(record["text"]) for record in records]
    samples = {sample.source: sample for sample in draw_samples(model, files, 20, 10, limit=100, seed=0)}
    assert samples.keys() == {"a", "b", str(files[1])}
    for source in "ab":
        ids = [part for record, part in zip(records, whole, strict=True) if record["source"] == source]
        enough = [part for part in ids if len(part) >= 30]
        found = samples[source]
        assert [p.ids.tolist() for p in found.passages] == [[2, *part[:30]] for part in enough]
        assert (found.documents, found.tokenized, found.too_short) == (len(ids), len(ids), len(ids) - len(enough))
    assert {(len(one.prompt), len(one.continuation)) for one in samples["a"].passages} == {(21, 10)}
    assert samples["a"].passages[0].place.startswith(f"{files[0]}, line ")


def test_samples_are_uniform():
    """Each of 50 documents, of which every fifth is too short, is drawn equally often."""
    drawn: Counter[str] = Counter()
    for seed in range(2000):
        sample = Sample("source", limit=5, seed=seed)
        for index in range(50):
            passage = Passage("source", str(index), np.zeros(3, np.int32), 2)
            sample.offer(lambda passage=passage, index=index: None if index % 5 == 4 else passage)
        assert len(sample.passages) == 5
        drawn.update(passage.place for passage in sample.passages)
    assert len(drawn) == 40
    expected = 2000 * 5 / 40
    deviation = (expected * (1 - 5 / 40)) ** 0.5
    assert max(abs(count - expected) for count in drawn.values()) < 4.5 * deviation


def corpus_of(tmp_path: Path, count: int = 70) -> Path:
    draw = random.Random(3)
    return write(tmp_path / "corpus.jsonl", [{"text": text(draw, 40), "source": "ab"[n % 2]} for n in range(count)])


def test_interrupted_audit(model: gemwright.Model, tmp_path: Path):
    """An audit that is interrupted, or whose file is cut anywhere, ends with the same bytes."""
    corpus, settings = corpus_of(tmp_path), Settings(20, 10)

    def run(out: str, report: Callable[[int, int], None] = lambda done, total: None) -> tuple[bytes, bytes]:
        audit(model, [corpus], tmp_path / out, settings, report=report)
        return (tmp_path / out / "samples.jsonl").read_bytes(), (tmp_path / out / "report.json").read_bytes()

    def interrupt(done: int, total: int) -> None:
        if done == BATCH:
            raise KeyboardInterrupt

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("stopped", interrupt)
    path = tmp_path / "stopped" / "samples.jsonl"
    assert path.read_bytes() == b"".join(whole[0].splitlines(keepends=True)[:BATCH])
    path.write_bytes(whole[0][: len(whole[0]) * 2 // 3])
    done: list[int] = []
    assert run("stopped", lambda count, total: done.append(count)) == whole
    assert done == [BATCH, 2 * BATCH, 70]
    assert run("stopped", lambda count, total: done.append(count)) == whole
    assert done[3:] == [70]  # nothing is left to do
    document = json.loads(whole[1])
    assert document["total"]["exact"]["documents"] == 70
    assert [source["source"] for source in document["sources"]] == ["a", "b"]
    path.write_text('{"source": "a"}\n' * 70)
    with pytest.raises(GemwrightError, match="was changed and cannot be read"):
        run("stopped")


def test_memorized_corpus(model: gemwright.Model, tmp_path: Path):
    """All texts that the model would write itself are memorized, and no others."""
    draw, own = random.Random(4), list[str]()
    prompts = [[2, *model.tokenizer.encode(text(draw, 8))[:20]] for _ in range(16)]
    for prompt, one in zip(prompts, model.generate(prompts, max_tokens=12, temperature=0.0), strict=True):
        ids = [*prompt[1:], *one.tokens]
        if model.tokenizer.encode(model.decode(ids)) == ids:  # not if the tokenizer joins what the model wrote apart
            own.append(model.decode(ids))
    records = [{"text": one, "source": "own"} for one in own]
    records += [{"text": text(draw, 40), "source": "other"} for _ in range(8)]
    corpus = write(tmp_path / "corpus.jsonl", records)
    for exact_only in (False, True):
        settings = Settings(20, 10, exact_only=exact_only)
        findings = audit(model, [corpus], tmp_path / f"out-{exact_only}", settings)
        rates = {one.source: (one.exact.count, one.exact.documents) for one in findings}
        assert rates == {"own": (len(own), len(own)), "other": (0, 8), "total": (len(own), len(own) + 8)}
        approximate = [one.approximate and one.approximate.count for one in findings]
        assert approximate == ([None] * 3 if exact_only else [len(own), 0, len(own)])
    assert len(own) >= 8


@pytest.mark.slow
def test_canaries(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The more often a tiny model saw a text, the likelier it completes it; what it never saw, it does not."""
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    arguments = ["canaries.py", "--out", str(tmp_path / "out"), "--model", str(tiny), "--method", "full"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--learning-rate", "1e-2", "--batch-size", "1"])
    runpy.run_path(str(ROOT / "recipes" / "canaries.py"), run_name="__main__")
    report = json.loads((tmp_path / "out" / "audit" / "report.json").read_text())
    rates = [source["exact"] for source in report["sources"]]
    assert [source["source"] for source in report["sources"]] == ["0", "1", "2", "4", "8", "16", "32", "64"]
    assert [rate["share"] for rate in rates[:3]] == [0.0] * 3
    assert rates[-1]["share"] == 1.0
    assert all(before["low"] <= after["high"] for before, after in itertools.pairwise(rates))  # no fall beyond chance
    assert (tmp_path / "out" / "canaries.png").read_bytes().startswith(b"\x89PNG")
