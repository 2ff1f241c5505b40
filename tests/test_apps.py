"""Run every application of examples/apps with tiny models."""

import io
import json
import os
import re
import runpy
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image
from typer.main import get_command

import gemwright
from gemwright.cli.app import app as command_line
from gemwright.generate.output import Completion
from gemwright.images.load import load_image
from gemwright.images.locations import parse
from gemwright.text.chat import GEMMA
from tests.documents import ROOT
from tests.tiny.gguf import write_tiny_gguf
from tests.tiny.hf import write_model

pytestmark = pytest.mark.usefixtures("quick_compilation")
FOLDER = ROOT / "examples" / "apps"
APPS = sorted(path.name for path in FOLDER.glob("*.py"))
COMMANDS = get_command(command_line).commands  # pyright: ignore[reportAttributeAccessIssue]
ALPHABET = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "base.gguf")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tuned.gguf", chat_template=GEMMA.template)


@pytest.fixture(scope="module")
def paligemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("paligemma"), "paligemma")


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs an application and returns its exit code, output and error output."""

    def run_app(name: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capsys.readouterr()
        try:
            runpy.run_path(str(FOLDER / name), run_name="__main__")
        except SystemExit as end:
            return (int(end.code or 0), *capsys.readouterr())
        return (0, *capsys.readouterr())

    return run_app


def functions(name: str) -> dict[str, Any]:
    """Return the functions of an application, and its globals as "globals"."""
    names = runpy.run_path(str(FOLDER / name))
    return names | {"globals": names["main"].__globals__}


def test_every_application_is_short_and_tested():
    for name in APPS:
        assert f'"{name}"' in Path(__file__).read_text(), name
        assert len((FOLDER / name).read_text().splitlines()) < 120, name


@pytest.mark.parametrize("kind", ["base", "tuned"])
def test_story(kind: str, run: Run, request: pytest.FixtureRequest):
    model = request.getfixturevalue("tiny" if kind == "base" else "tuned")
    arguments = ("a hen", "--model", model, "--chapters", 2, "--words", 6)
    code, story, _ = run("story.py", *arguments)
    head, first, second = re.split(r"\n## \d\. ", story)
    outline = re.findall(r"^\d\. (.+)$", head, re.MULTILINE)
    assert (code, len(outline)) == (0, 2)
    assert [first.partition("\n")[0], second.partition("\n")[0]] == outline
    assert all(len(chapter.partition("\n\n")[2].strip()) > 4 for chapter in (first, second))
    assert run("story.py", *arguments)[1] == story
    assert run("story.py", *arguments, "--seed", 1)[1] != story


def test_a_story_continues_a_page(tiny: Path, tuned: Path):
    """A base model reads the page; a tuned one reads the request, and the page as the beginning of its answer."""
    app, prompts = functions("story.py"), []
    for path in (tiny, tuned):
        model = gemwright.load(path)
        stream = type(model).stream
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(model), "stream", lambda self, ids, **options: prompts.append((self, ids)) or iter("x"))
            list(app["continue_page"](model, "be good", "the hen ", 0, 3, ["\n"]))
        assert type(model).stream is stream
    (base, page), (chat, whole) = prompts
    assert page == base.encode("the hen")
    talk = chat.encode_chat([{"role": "user", "content": "be good"}])
    assert whole == [*talk, *chat.encode("the hen")[1:]]
    assert whole.count(chat.tokenizer.bos_id) == 1


def translate(run: Run, model: Path, folder: Path, glossary: str, *arguments: object) -> tuple[int, str, str]:
    (folder / "in.txt").write_text("the hen sat.\n\nThe man and hens.\n")
    (folder / "terms.csv").write_text(glossary)
    files = (folder / "in.txt", "--glossary", folder / "terms.csv")
    return run("translate.py", *files, "--to", "German", "--model", model, *arguments)


@pytest.mark.parametrize("kind", ["base", "tuned"])
def test_translate(kind: str, run: Run, tmp_path: Path, request: pytest.FixtureRequest):
    model = request.getfixturevalue("tiny" if kind == "base" else "tuned")
    code, text, errors = translate(run, model, tmp_path, f"hen,{'|'.join(ALPHABET)}\ncat,Katze\n")
    assert (code, errors) == (0, "")  # random words: some are short and begin with some letter
    assert [bool(line) for line in text.splitlines()] == [True, False, True]


def test_translate_reports_missing_terms(run: Run, tiny: Path, tmp_path: Path):
    code, text, errors = translate(run, tiny, tmp_path, "hen,Zuchthenne\nman,Mann|Mensch\n", "--attempts", 2)
    assert code == 1
    assert len(text.splitlines()) == 3
    assert errors.splitlines() == [
        f"{tmp_path / 'in.txt'}, line 1: the translation lacks hen = Zuchthenne",
        f"{tmp_path / 'in.txt'}, line 3: the translation lacks hen = Zuchthenne",
        f"{tmp_path / 'in.txt'}, line 3: the translation lacks man = Mann or Mensch",
    ]


@pytest.mark.parametrize("glossary", ["hen\n", "hen,\n", "a,b,c\n", ",Henne\n", "hen,|\n"])
def test_translate_refuses_a_glossary(glossary: str, run: Run, tiny: Path, tmp_path: Path):
    code, _, errors = translate(run, tiny, tmp_path, "the,die\n" + glossary)
    assert (code, "terms.csv, line 2: " in errors) == (2, True)


def test_translate_takes_the_best_candidate():
    """With the fewest missing terms; of those the most probable, which comes last; the next attempt names the rest."""
    app, calls = functions("translate.py"), []
    hen, cat = app["Term"]("hen", ("Henne",)), app["Term"]("cat", ("Katze", "Kater"))
    answers = [["Henne 1", "Henne 2", "x"], ["x", "Katzen und Hennen", "Henne  und\nKater", "Kater"]]

    def ask(model: object, line: str, languages: object, terms: object, missing: object, attempt: int):
        calls.append(missing)
        return [Completion(text, [], [], [], "stop", 1) for text in answers[attempt]]

    app["globals"]["ask"] = ask
    assert app["translate"](None, "", ("", ""), [hen, cat], 1) == ("Henne 2", [cat])
    assert app["translate"](None, "", ("", ""), [hen, cat], 2) == ("Henne und Kater", [])
    assert calls == [[], [], [cat]]


@pytest.mark.parametrize(
    ("text", "term", "expected"),
    [
        ("Die Kerne.", "Kern", True),
        ("der kern", "Kern", True),
        ("Im Erdkern", "Kern", False),
        ("Kernschmelze", "Kern", False),
        ("C++ (new)", "c++", True),
        ("编译内核模块", "内核", True),
        ("", "x", False),
    ],
)
def test_translate_finds_terms(text: str, term: str, expected: bool):
    assert functions("translate.py")["contains"](text, term) == expected


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    (tmp_path / "notes").mkdir()
    (tmp_path / "birds.md").write_text("# Birds\n\nThe hen lays eggs.\n")
    (tmp_path / "notes" / "metals.txt").write_text(
        "Iron melts at 1538 degrees.\n" + "\nfiller words" * 150 + "\ngold\n"
    )
    (tmp_path / "notes" / "image.png").write_bytes(b"iron iron iron")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin1.txt").write_bytes("Käse ist gelb".encode("latin-1"))
    return tmp_path


@pytest.mark.parametrize("kind", ["base", "tuned"])
def test_ask_documents(kind: str, run: Run, documents: Path, request: pytest.FixtureRequest):
    pytest.importorskip("bm25s")
    model = request.getfixturevalue("tiny" if kind == "base" else "tuned")
    question = (documents, "When does iron melt?", "--model", model, "--max-tokens", 4)
    code, text, errors = run("ask_documents.py", *question)
    assert (code, errors) == (0, "")
    assert text.splitlines()[-1] == f"[1] {documents / 'notes' / 'metals.txt'}, line 1"


def test_ask_documents_cites_and_checks(run: Run, documents: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path):
    pytest.importorskip("bm25s")
    answer = Completion(" At 1538 degrees [2], or not [7][2].", [], [], [], "stop", 1)
    monkeypatch.setattr(gemwright.api.Model, "generate", lambda self, prompt, **options: answer)
    code, text, errors = run("ask_documents.py", documents, "Do gold or eggs melt, or iron?", "--model", tiny)
    assert code == 0
    assert [line[:3] for line in text.splitlines() if line.startswith("[")] == ["[2]"]
    assert errors == "The answer cites [7], but there are 3 passages.\n"


@pytest.mark.parametrize("arguments", [("zebra",), ("",), ("iron", "--passages", 0), ("iron", "--model", "nonsense")])
def test_ask_documents_errors(arguments: tuple[object, ...], run: Run, documents: Path):
    pytest.importorskip("bm25s")
    code, text, errors = run("ask_documents.py", documents, *arguments)
    assert (code, text) == (2, "")
    assert errors.strip().count("\n") < 8  # a sentence, after the usage if an option is out of range


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["", "word", "two words", "x " * 90, "x " * 400]), max_size=12))
def test_passages_are_the_file(lines: list[str]):
    """Each is a run of lines at its number, and none of the words is lost."""
    app = functions_of_documents()
    file = io.StringIO("\n".join(lines))
    file.read_text = lambda **_: file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    passages = list(app["split"](file))
    assert " ".join(text for _, _, text in passages).split() == " ".join(lines).split()
    for _, number, text in passages:
        whole = "\n".join(lines[number - 1 :])
        assert whole.startswith(text)
    assert all(len(text.split()) <= 2 * app["MAX_WORDS"] + 400 for _, _, text in passages)


def functions_of_documents(cache: dict[str, Any] = {}) -> dict[str, Any]:  # noqa: B006
    pytest.importorskip("bm25s")
    return cache or cache.update(functions("ask_documents.py")) or cache


CODE = "def add(a, b):\r\n    return ???\r\n\r\nadd(1, ???)\r\n"


def test_complete_code(run: Run, tiny: Path, tmp_path: Path):
    file = tmp_path / "add.py"
    file.write_bytes(CODE.encode())
    file.chmod(0o755)
    code, text, _ = run("complete_code.py", file, "--model", tiny, "--max-tokens", 5, "--once")
    before, _, after = CODE.partition("???")
    middle = gemwright.load(tiny).infill(before, after, max_tokens=5).text
    assert (code, text) == (0, f"{middle}\n")
    assert file.read_bytes().decode() == before + middle + after
    assert file.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in tmp_path.iterdir()] == ["add.py"]


def test_complete_code_keeps_what_is_typed_meanwhile(tmp_path: Path):
    app, file = functions("complete_code.py"), tmp_path / "add.py"
    file.write_text("a ??? b")

    def complete(before: str, after: str) -> str:
        file.write_text("typed ??? since")
        return "middle"

    assert app["fill"](file, "???", complete) == "middle"
    assert file.read_text() == "typed ??? since"


def test_complete_code_watches(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Every gap is filled in, also those that are written later; a completion never leaves a gap."""
    app, file, done = functions("complete_code.py"), tmp_path / "add.py", threading.Event()
    app["globals"]["INTERVAL"] = 0.01
    file.write_text("1 ??? 2 ??? 3")

    def complete(before: str, after: str) -> str:
        if before == "later ":
            done.set()
            raise KeyboardInterrupt
        if "???" not in after:
            threading.Timer(0.1, lambda: file.write_text("later ???")).start()
        return "+ ???"

    with pytest.raises(KeyboardInterrupt):
        app["watch"](file, "???", complete)
    assert done.is_set()
    assert capsys.readouterr().out == "+ \n+ \n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("missing.py",),
        ("code.py", "--marker", ""),
        ("code.py", "--model", "nonsense"),
        ("code.py", "--url", "http://["),
    ],
)
def test_complete_code_errors(arguments: tuple[str, ...], run: Run, tiny: Path, tmp_path: Path):
    (tmp_path / "code.py").write_text("???")
    name, *rest = arguments
    model = [] if "--model" in rest else ["--model", tiny]
    code, text, errors = run("complete_code.py", tmp_path / name, *rest, *model, "--once")
    assert (code, text, (tmp_path / "code.py").read_text()) == (2, "", "???")
    assert errors


@pytest.mark.slow
@pytest.mark.skipif("serve" not in COMMANDS, reason="gemwright serve is not in this version")
def test_complete_code_asks_a_server(run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The server gives the same text as the model here, and a wrong key or name is one sentence."""
    import httpx

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    file = tmp_path / "add.py"
    file.write_bytes(CODE.encode())
    arguments = (file, "--max-tokens", 5, "--once", "--url", f"http://127.0.0.1:{port}/v1")
    command = [sys.executable, "-m", "gemwright", "serve", "--model", str(tiny), "--port", str(port)]
    environment = os.environ | {"GEMWRIGHT_API_KEY": "secret", "PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen(command, env=environment) as server:
        try:
            address, end = f"http://127.0.0.1:{port}/readyz", time.monotonic() + 120
            while time.monotonic() < end and not is_ready(httpx, address):
                time.sleep(0.2)
            code, _, errors = run("complete_code.py", *arguments, "--model", tiny)
            assert (code, "did not complete the code" in errors, file.read_bytes()) == (2, True, CODE.encode())
            monkeypatch.setenv("OPENAI_API_KEY", "secret")
            assert run("complete_code.py", *arguments, "--model", "nonsense")[0] == 2
            code, text, _ = run("complete_code.py", *arguments, "--model", tiny)
        finally:
            server.terminate()
    before, _, after = CODE.partition("???")
    middle = gemwright.load(tiny).infill(before, after, max_tokens=5).text
    assert (code, text) == (0, f"{middle}\n")
    assert file.read_bytes().decode() == before + middle + after


def is_ready(httpx: Any, address: str) -> bool:
    try:
        return httpx.get(address).is_success
    except httpx.TransportError:
        return False


def test_find_objects(run: Run, paligemma: Path, tmp_path: Path):
    random = np.random.default_rng(0)
    photos = [tmp_path / f"{name}.png" for name in ("one", "two", "three")]
    for photo, size in zip(photos, ((40, 30), (20, 60), (33, 33)), strict=True):
        Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(photo)
    arguments = (*photos, "--find", "cat", "--find", "dog", "--out", tmp_path / "marked", "--model", paligemma)
    code, text, _ = run("find_objects.py", *arguments, "--max-tokens", 6)
    records = [json.loads(line) for line in text.splitlines()]
    assert (code, [record["image"] for record in records]) == (0, list(map(str, photos)))
    model = gemwright.load(paligemma)
    for photo, record in zip(photos, records, strict=True):
        prompts = ["caption en", "detect cat ; dog"]
        caption, objects = model.generate(prompts, images=[[photo], [photo]], temperature=0.0, max_tokens=6)
        assert (record["caption"], len(record["objects"])) == (caption.text.strip(), len(parse(objects.text)))
        assert load_image(record["marked"]).shape == load_image(photo).shape
    code, _, errors = run("find_objects.py", *arguments)
    assert (code, errors.count("exists; pass another folder")) == (2, 1)


def test_find_objects_marks_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    app = functions("find_objects.py")
    image = tmp_path / "photo.png"
    Image.fromarray(np.zeros((100, 200, 3), np.uint8)).save(image)
    texts = ["a cat ", "<loc0256><loc0256><loc0767><loc0767> cat ; <loc0000><loc0000><loc1023><loc1023> wall"]

    class Model:
        def generate(self, prompts: list[str], **options: Any) -> list[Completion]:
            assert prompts == ["caption en", "detect cat ; wall"]
            return [Completion(text, [], [], [], "stop", 1) for text in texts]

    (record,) = app["mark"](Model(), {image: tmp_path / "out.png"}, ("caption en", "detect cat ; wall"), 9)
    assert record["caption"] == "a cat"
    assert record["objects"] == [
        {"label": "cat", "left": 50, "top": 25, "right": 149, "bottom": 74},
        {"label": "wall", "left": 0, "top": 0, "right": 200, "bottom": 100},
    ]
    assert load_image(tmp_path / "out.png").any()


def test_find_objects_errors(run: Run, paligemma: Path, tiny: Path, tmp_path: Path):
    for name in ("a/photo.png", "b/photo.jpg"):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / name)
    both = (tmp_path / "a/photo.png", tmp_path / "b/photo.jpg")
    assert "the same name" in run("find_objects.py", *both, "--find", "cat", "--model", paligemma)[2]
    code, _, errors = run("find_objects.py", both[0], "--find", "cat", "--out", tmp_path / "out", "--model", tiny)
    assert (code, "does not accept images" in errors) == (2, True)
    code, _, errors = run("find_objects.py", __file__, "--find", "cat", "--out", tmp_path / "out", "--model", paligemma)
    assert (code, "test_apps.py" in errors) == (2, True)
