"""Messages of several lines, commands and saved conversations of `gemwright chat`."""

import io
import json
import os
import pty
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gemwright.cli.chat import _is_command
from gemwright.cli.conversation import Conversation, Turn
from gemwright.cli.terminal import MessageReader
from gemwright.errors import GemwrightError

OPTIONS = ("--temperature", 0, "--max-tokens", 4)


def read_messages(typed: bytes, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the messages that a reader finds in the input of a terminal, which ends with Ctrl-D."""
    ours, theirs = pty.openpty()
    drain = threading.Thread(target=lambda: [None for _ in iter(lambda: _read(ours), b"")], daemon=True)
    drain.start()
    os.write(ours, typed + b"\x04")
    with os.fdopen(os.dup(theirs), "r") as stdin, os.fdopen(os.dup(theirs), "w") as stdout:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "stdout", stdout)
        reader, messages = MessageReader(_is_command), []
        while True:
            try:
                messages.append(reader.read("> "))
            except EOFError:
                break
        monkeypatch.undo()
    os.close(theirs)
    drain.join()
    os.close(ours)
    return messages


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # the other side is closed
        return b""


@pytest.mark.parametrize(
    ("typed", "messages"),
    [
        (b"one\n", ["one"]),
        (b"one\ntwo\n\nthree\n", ["one\ntwo\n\nthree"]),
        (b'"""one\ntwo\n/reset"""\n', ["one\ntwo\n/reset"]),
        (b'"""one"""\n', ["one"]),
        (b'"""\none\n"""\n', ["\none\n"]),
        (b'"""one\n', ["one"]),
        (b"/reset\nhello\nand\n", ["/reset", "hello\nand"]),
        (b"/usr/bin\nhello\n", ["/usr/bin\nhello"]),
    ],
    ids=[
        "one line",
        "a paste",
        "quotes",
        "quotes on a line",
        "quotes alone",
        "an open quote",
        "a command first",
        "a path first",
    ],
)
def test_lines_that_arrive_together_are_one_message(typed, messages, monkeypatch):
    assert read_messages(typed, monkeypatch) == messages


@pytest.mark.parametrize(
    "text", ["/usr/bin is a folder", "/usr/bin", "/ 2", "/resets it", " /reset", "a /reset", "/Users", "/tmp.txt"]
)
def test_messages_that_are_no_commands(text: str):
    assert not _is_command(text)


@pytest.mark.parametrize("text", ["/reset", "/reset ", "/system be good", "/?", "/exi", "/usr", "/load a b"])
def test_commands(text: str):
    assert _is_command(text)


def test_session_is_continued_and_saved(run, tiny, tmp_path: Path):
    file = tmp_path / "talk.json"
    arguments = ("chat", "-m", tiny, *OPTIONS, "--system", "be good", "--json")
    whole = [json.loads(line) for line in run(*arguments, stdin=b"hello\nhen\n").out.splitlines()]
    first = run(*arguments, "--session", file, stdin=b"hello\n")
    assert first.code == 0
    again = run("chat", "-m", tiny, *OPTIONS, "--json", "--session", file, stdin=b"hen\n")
    assert json.loads(again.out)["tokens"] == whole[1]["tokens"]
    assert json.loads(file.read_text()) == {
        "messages": [
            {"role": "system", "content": "be good"},
            *(
                {"role": role, "content": text}
                for record in whole
                for role, text in (("user", record["message"]), ("assistant", record["text"]))
            ),
        ]
    }
    assert [path.name for path in tmp_path.iterdir()] == ["talk.json"]


def test_images_of_a_session(tmp_path: Path):
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(tmp_path / "photo.png")
    messages = [{"role": "user", "content": "\ud800a", "images": [str(tmp_path / "photo.png")]}]
    messages.append({"role": "assistant", "content": "b"})
    (tmp_path / "talk.json").write_text(json.dumps(messages))
    talk = Conversation()
    talk.load(tmp_path / "talk.json")
    assert talk.messages("c")[0].images[0].shape == (2, 3, 3)
    assert talk.turns[0].text == "\ufffda"
    talk.save(tmp_path / "talk.json")  # the file that it came from
    assert json.loads((tmp_path / "talk.json").read_text())["messages"][0]["images"] == [str(tmp_path / "photo.png")]


def test_another_file_is_never_replaced(tmp_path: Path):
    (tmp_path / "mine.json").write_text("mine")
    talk = Conversation(turns=[Turn("user", "a"), Turn("assistant", "b")])
    with pytest.raises(GemwrightError, match="exists"):
        talk.save(tmp_path / "mine.json")
    assert (tmp_path / "mine.json").read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("not JSON", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("{}", "has no list of messages"),
        ('[{"role": "user"}]', "has no list of messages"),
        ('[{"role": "user", "content": "a", "images": [3]}]', "has no list of messages"),
        ('[{"role": "user", "content": "a"}]', "does not alternate"),
        ('[{"role": "assistant", "content": "a"}, {"role": "user", "content": "a"}]', "does not alternate"),
        ('[{"role": "tool", "content": "a"}, {"role": "assistant", "content": "b"}]', "does not alternate"),
    ],
)
def test_damaged_session(run, tiny, tmp_path: Path, content: str, problem: str):
    (tmp_path / "talk.json").write_text(content)
    result = run("chat", "-m", tiny, "--session", tmp_path / "talk.json", stdin=b"a\n")
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert problem in result.err
    assert (tmp_path / "talk.json").read_text() == content


def test_unwritable_session(run, tiny, tmp_path: Path):
    result = run("chat", "-m", tiny, "--session", tmp_path / "none" / "talk.json", stdin=b"a\n")
    assert result.code == 2
    assert "does not exist; choose another path" in result.err


def test_stop_in_a_chat(run, tiny):
    whole = json.loads(run("chat", "-m", tiny, *OPTIONS, "--json", stdin=b"hello\n").out)["text"]
    stopped = run("chat", "-m", tiny, *OPTIONS, "--json", "--stop", whole[2], stdin=b"hello\n")
    assert json.loads(stopped.out)["text"] == whole[: whole.index(whole[2])]


def test_base_model_names_the_chat_models(run, tiny_config_is_published):
    result = run("chat", "-m", tiny_config_is_published, *OPTIONS, stdin=b"a\n")
    assert "is a base model, not a chat model; use one whose name ends in -it, such as some-it.\n" in result.err


@pytest.fixture
def tiny_config_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from gemwright.variants import VARIANTS, Variant
    from tests.tiny.config import make_config
    from tests.tiny.gguf import write_tiny_gguf

    monkeypatch.setitem(VARIANTS, "some", Variant("Gemma 3", make_config(4096), 1, ("some-pt", "some-it")))
    return write_tiny_gguf(tmp_path / "base.gguf")


def test_messages_of_a_pipe_have_windows_line_ends(run, tiny):
    plain = run("chat", "-m", tiny, *OPTIONS, stdin=b"hello\nhen\n")
    assert run("chat", "-m", tiny, *OPTIONS, stdin=b"hello\r\nhen\r\n") == plain


def test_reader_without_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
    assert MessageReader(_is_command).read("> ") == "one"
