"""Each download runs in its own process, because `huggingface_hub` reads the environment once."""

import contextlib
import json
import os
import pty
import re
import shutil
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gemwright.checkpoint.hub import is_repo_id
from tests.checkpoint import hub_server
from tests.checkpoint.hub_server import Hub, Repo

FOLDER = {
    "config.json": b'{"model_type": "gemma"}',
    "generation_config.json": b"{}",
    "tokenizer.model": os.urandom(100),
    "tokenizer.json": b'{"model": {}}',
    "chat_template.jinja": b"{{ x }}",
    "model.safetensors.index.json": b'{"weight_map": {}}',
    "model-00001-of-00002.safetensors": os.urandom(300_000),
    "model-00002-of-00002.safetensors": os.urandom(200_000),
}
UNWANTED = {"README.md": b"#", "pytorch_model.bin": b"no", "onnx/config.json": b"{}", "onnx/x.safetensors": b"no"}
GGUF = {"a-Q4_K_M.gguf": os.urandom(100_000), "a-F16.gguf": os.urandom(10), "README.md": b"#", "config.json": b"{}"}
SHARD = "model-00001-of-00002.safetensors"
PAGE = "https://huggingface.co/google/gemma"

SCRIPT = """
import json, os, sys, time
time.sleep = lambda seconds: None  # between the library's attempts
from gemwright.checkpoint.hub import download
from gemwright.errors import GemwrightError
for token, *arguments in json.loads(sys.argv[1]):
    os.environ["HF_TOKEN"] = token
    try:
        print("got", download(*arguments))
    except GemwrightError as error:
        print(error)
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_server.serve(Hub({"google/gemma": Repo(FOLDER | UNWANTED), "some/gguf": Repo(dict(GGUF))})) as hub:
        yield hub


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def environment(hub: Hub, home: Path, **more: str) -> dict[str, str]:
    others = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    return others | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"} | more


def run(hub: Hub, home: Path, *calls: tuple[str, ...], prefix: tuple[str, ...] = (), **more: str) -> Any:
    """Make calls in turn in one process, each with a token (or "") and arguments."""
    hub.requests.clear()
    result = subprocess.run(
        [*prefix, sys.executable, "-c", SCRIPT, json.dumps(calls)],
        env=environment(hub, home, **more),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result


def succeed(hub: Hub, home: Path, *arguments: str, token: str = "", **more: str) -> Path:
    said = run(hub, home, (token, *arguments), **more).stdout
    assert said.startswith("got /"), said
    return Path(said.removeprefix("got ").strip())


def fail(hub: Hub, home: Path, *arguments: str, **more: Any) -> str:
    return fail_each(hub, home, ("", *arguments), **more)[0]


def fail_each(hub: Hub, home: Path, *calls: tuple[str, ...], **more: Any) -> list[str]:
    """Return the one-sentence error of each call."""
    sentences = run(hub, home, *calls, **more).stdout.splitlines()
    assert_nothing_half_written(hub, home)
    assert len(sentences) == len(calls)
    for sentence in sentences:
        assert not sentence.startswith("got ")
        assert sentence.endswith(".")
        assert len(sentence) < 400
    return sentences


def snapshot(home: Path) -> dict[str, bytes]:
    """Return every file of a repository in the cache."""
    root = home / "hub"
    files = (file for file in root.glob("models--*/snapshots/*/**/*") if file.is_file())
    return {str(file.relative_to(root).as_posix().split("/", 3)[3]): file.read_bytes() for file in files}


def assert_nothing_half_written(hub: Hub, home: Path) -> None:
    whole = {content for repo in hub.repos.values() for content in repo.files.values()}
    assert all(content in whole for content in snapshot(home).values())
    assert not list(home.rglob("*.incomplete"))


def go_offline(hub: Hub) -> None:
    """Point to a loopback port that nobody listens on."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        hub.endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"


@pytest.mark.parametrize(
    "text",
    [
        *("google/gemma-3-270m", "o/n", "a.b/c_d-e.f", "a/" + "n" * 96, "_o/n_"),
        *("o/n:f.gguf", "o/n:sub/a-Q4_K_M.gguf", "o/n:f.gguf.part1of2", "o/n:f.gguf-split-a"),
    ],
)
def test_repo_ids(text: str) -> None:
    assert is_repo_id(text)


@pytest.mark.parametrize(
    "text",
    [
        "", "gemma", "/n", "o/", "a/b/c", "./gemma", "../gemma", "/abs/path", "~/gemma", "o/.n", "o/n.", "o/-n", "o/n-",
        "o/a--b", "o/a..b", "o/n.git", "o/" + "n" * 97, "o/ñ", "o/n ", "o/n\n", "o/n:", "o/n:f.bin", "o/n:.gguf",
        "o/n:f.gguf.zip", "o/n:../f.gguf", "o/n:*.gguf", "o/n:/f.gguf", "o/n:a:f.gguf", "o\\n",
        "https://huggingface.co/o/n",
    ],
)  # fmt: skip
def test_invalid_repo_ids(text: str) -> None:
    assert not is_repo_id(text)


def test_repo_ids_are_those_of_the_library() -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    for owner in ("a", "A_b.c-1", "-a", "a-", ".a", "a.", "_", "a--b", "a" * 96, "a" * 97, "é", "a b"):
        for name in ("n", "n.git", "n..m", "n-", "_n", "n" * 97, "0"):
            try:
                validate_repo_id(f"{owner}/{name}")
                allowed = True
            except HFValidationError:
                allowed = False
            assert is_repo_id(f"{owner}/{name}") == allowed, f"{owner}/{name}"


def test_downloads_the_files_of_a_folder_once(hub: Hub, home: Path) -> None:
    folder = succeed(hub, home, "google/gemma")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == FOLDER
    assert {name for name, _ in hub.fetched()} == set(FOLDER)
    assert succeed(hub, home, "google/gemma") == folder
    assert not hub.fetched()
    assert succeed(hub, home, "google/gemma", hub_server.COMMIT) == folder


def test_downloads_the_vision_tower_of_a_gguf(hub: Hub, home: Path) -> None:
    towers = ["mmproj-BF16.gguf", "mmproj-F16.gguf", "mmproj-F32.gguf"]
    more = {
        name: os.urandom(50) for name in (*towers, "sub/b.gguf", "sub/mmproj-b.gguf", "c/c.gguf", "c/b-mmproj.gguf")
    }
    hub.repos["some/gguf"] = Repo(GGUF | more | {"c/mmproj-a.gguf": b"1"})
    succeed(hub, home, "some/gguf:a-F16.gguf")
    expected = {"a-F16.gguf", "mmproj-BF16.gguf"}
    assert snapshot(home).keys() == expected
    succeed(hub, home, "some/gguf:sub/b.gguf")
    expected |= {"sub/b.gguf", "sub/mmproj-b.gguf"}
    assert snapshot(home).keys() == expected
    succeed(hub, home, "some/gguf:c/c.gguf")  # two towers
    assert snapshot(home).keys() == expected | {"c/c.gguf"}
    succeed(hub, home, "some/gguf:mmproj-F32.gguf")
    assert snapshot(home).keys() == expected | {"c/c.gguf", "mmproj-F32.gguf"}


def test_downloads_all_parts_of_a_cut_gguf(hub: Hub, home: Path) -> None:
    parts = {f"x.gguf.part{number}of11": os.urandom(100) for number in range(1, 12)}
    others = {"x.gguf.part1of2": b"GGUF", "y.gguf.part1of11": b"GGUF", "x.gguf.sha256": b"#"}
    hub.repos["some/cut"] = Repo(parts | others)
    path = succeed(hub, home, "some/cut:x.gguf.part1of11")
    assert path.name == "x.gguf.part1of11"
    assert snapshot(home) == parts
    assert "choose from some/cut:x.gguf.part1of11, " in fail(hub, home, "some/cut:x.gguf")


def test_downloads_the_chosen_gguf(hub: Hub, home: Path) -> None:
    path = succeed(hub, home, "some/gguf:a-F16.gguf")
    assert path.name == "a-F16.gguf"
    assert snapshot(home) == {"a-F16.gguf": GGUF["a-F16.gguf"]}
    go_offline(hub)
    assert succeed(hub, home, "some/gguf:a-F16.gguf") == path
    for sentence in fail_each(hub, home, ("", "some/gguf:a-Q4_K_M.gguf"), ("", "some/gguf")):
        assert "cannot be reached" in sentence


@pytest.mark.parametrize("how", ["no network", "HF_HUB_OFFLINE", "hub in trouble", "token expired"])
def test_the_cache_is_used_when_the_hub_fails(hub: Hub, home: Path, how: str) -> None:
    folder = succeed(hub, home, "google/gemma")
    more = {}
    match how:
        case "no network":
            go_offline(hub)
        case "HF_HUB_OFFLINE":
            more = {"HF_HUB_OFFLINE": "1"}
        case "hub in trouble":
            hub.broken["/"] = 503
        case _:
            more = {"token": "hf_expired"}
    assert succeed(hub, home, "google/gemma", **more) == folder
    assert not hub.fetched()


def test_resumes_a_broken_transfer(hub: Hub, home: Path) -> None:
    """The library keeps downloaded data in chunks of 10 MiB."""
    large = os.urandom(1 << 20) * 12
    hub.repos["google/gemma"].files[SHARD] = large
    hub.cuts[SHARD] = 11 << 20
    folder = succeed(hub, home, "google/gemma")
    assert (folder / SHARD).read_bytes() == large
    assert [asked for name, asked in hub.fetched() if name == SHARD] == [None, f"bytes={10 << 20}-"]


def test_a_second_call_downloads_only_missing_files(hub: Hub, home: Path) -> None:
    hub.stops[SHARD] = 123_456
    sentence = fail(hub, home, "google/gemma")
    assert "the connection to http://127.0.0.1" in sentence
    assert "broke; try again" in sentence
    assert SHARD not in snapshot(home)
    done = set(snapshot(home))
    assert done
    hub.stops.clear()
    folder = succeed(hub, home, "google/gemma")
    assert {name for name, _ in hub.fetched()} == set(FOLDER) - done
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == FOLDER


def test_an_incomplete_cache_is_not_used(hub: Hub, home: Path) -> None:
    hub.broken[f"/google/gemma/resolve/{hub_server.COMMIT}/tokenizer.json"] = 404
    fail(hub, home, "google/gemma")
    assert snapshot(home)
    go_offline(hub)
    assert "cannot be reached" in fail(hub, home, "google/gemma")


def test_no_network(hub: Hub, home: Path) -> None:
    go_offline(hub)
    assert fail(hub, home, "google/gemma") == (
        f"google/gemma: is not in the cache and {hub.endpoint} cannot be reached; connect to the network and try again."
    )


def test_network_forbidden(hub: Hub, home: Path) -> None:
    assert "HF_HUB_OFFLINE forbids the network; unset it" in fail(hub, home, "google/gemma", HF_HUB_OFFLINE="1")
    assert not hub.requests


REFUSALS = {
    "hf_fine": "Please enable access to public gated repositories in your fine-grained token settings to view it.",
    "hf_wait": "Your request to access model google/gemma is awaiting a review from the repo authors.",
}


def test_gates(hub: Hub, home: Path) -> None:
    repo = hub.repos["google/gemma"]
    repo.gated, repo.readers, repo.refusals = True, ("hf_reader",), REFUSALS
    hub.tokens = ("hf_new", "hf_fine", "hf_wait", "hf_reader")
    tokens = ("", "hf_wrong", "hf_new", "hf_fine", "hf_wait")
    settings = "https://huggingface.co/settings/tokens"
    give_token = f"set HF_TOKEN to a token from {settings}"
    assert fail_each(hub, home, *((token, "google/gemma") for token in tokens)) == [
        f"google/gemma: {sentence}."
        for sentence in (
            f"requires accepting its license; accept it at {PAGE} and {give_token}",
            f"the hub rejects this token, which may be wrong or expired; {give_token}",
            f"the owner of this token has not accepted its license; accept it at {PAGE}",
            f"this token may not read gated repositories; allow it in its settings at {settings}",
            f"its authors have not answered your request for access yet; see {PAGE}",
        )
    ]
    assert not snapshot(home)


def test_a_token_with_access_downloads(hub: Hub, home: Path) -> None:
    hub.repos["google/gemma"].gated = True
    hub.repos["google/gemma"].readers = hub.tokens = ("hf_reader",)
    assert (succeed(hub, home, "google/gemma", token="hf_reader") / SHARD).read_bytes() == FOLDER[SHARD]


def test_private_and_absent_repositories_look_the_same(hub: Hub, home: Path) -> None:
    hub.repos["google/gemma"].private = True
    hub.tokens = ("hf_other",)
    tokens = ("", "hf_other", "hf_wrong")
    private, absent = (
        [said.replace(name, "o/n") for said in fail_each(hub, home, *((token, name) for token in tokens))]
        for name in ("google/gemma", "google/absent")
    )
    assert private == absent
    page = "https://huggingface.co/o/n"
    assert f"there is no such repository, or it is private; check the name at {page} or set HF_TOKEN" in absent[0]
    assert f"there is no such repository, or this token may not read it; check the name at {page}." in absent[1]
    assert "the hub rejects this token" in absent[2]


def test_no_such_revision(hub: Hub, home: Path) -> None:
    assert fail(hub, home, "google/gemma", "v9") == (f"google/gemma: has no revision 'v9'; see {PAGE}/commits.")


def test_no_such_file(hub: Hub, home: Path) -> None:
    hub.repos["some/notes"] = Repo({"README.md": b"#"})
    choices = "choose from some/gguf:a-Q4_K_M.gguf, some/gguf:a-F16.gguf."
    calls = (("", "some/gguf:b.gguf"), ("", "some/gguf"), ("", "some/notes"))
    assert fail_each(hub, home, *calls) == [
        f"some/gguf: has no b.gguf; {choices}",
        f"some/gguf: has no safetensors file; {choices}",
        "some/notes: has no safetensors file; use another repository.",
    ]


def test_no_repository_name(hub: Hub, home: Path) -> None:
    assert fail(hub, home, "a/b/c") == "'a/b/c' is not a hub repository; use owner/name or owner/name:file.gguf."
    assert not hub.requests


def test_server_errors(hub: Hub, home: Path) -> None:
    expected = {
        500: "the hub has an internal error (status 500); try again later.",
        503: "the hub has an internal error (status 503); try again later.",
        403: "this token may not read it; allow it in its settings",
        429: "the hub received too many requests; wait some minutes or set HF_TOKEN",
        418: "the hub refused with status 418",
    }
    hub.broken = {f"/api/models/status/{status}": status for status in expected}
    sentences = fail_each(hub, home, *(("", f"status/{status}") for status in expected))
    for sentence, (status, start) in zip(sentences, expected.items(), strict=True):
        assert sentence.startswith(f"status/{status}: {start}")


def test_files_that_the_server_denies(hub: Hub, home: Path) -> None:
    hub.broken["/google/"] = 403
    assert "this token may not read it; allow it in its settings" in fail(hub, home, "google/gemma")
    assert not snapshot(home)


def test_a_storage_that_fails(hub: Hub, home: Path) -> None:
    hub.storage = 404
    assert re.search(r"the hub's file storage failed \(.*404.*\); try again later", fail(hub, home, "google/gemma"))


def test_a_captive_portal(hub: Hub, home: Path) -> None:
    """A network that answers every request with its login page."""
    hub.page = b"<html>Welcome to the hotel</html>"
    assert "does not answer like the hub; check HF_ENDPOINT and the proxy" in fail(hub, home, "google/gemma")


def test_a_file_of_another_size(hub: Hub, home: Path) -> None:
    hub.stops[SHARD], hub.short = 1000, True
    assert "a downloaded file has another size than announced; try again" in fail(hub, home, "google/gemma")
    assert SHARD not in snapshot(home)


def test_a_listed_file_that_is_gone(hub: Hub, home: Path) -> None:
    class Listed(dict[str, bytes]):
        def __contains__(self, name: object) -> bool:
            return name != SHARD and super().__contains__(name)

    hub.repos["google/gemma"].files = Listed(FOLDER)
    assert f"a listed file is missing; see {PAGE}/tree/main" in fail(hub, home, "google/gemma")


def test_free_space_is_checked_before_the_first_byte(hub: Hub, home: Path) -> None:
    hub.repos["google/gemma"].claimed = {SHARD: 1 << 60}
    sentence = fail(hub, home, "google/gemma")
    assert re.search(
        r"the disk is full \(1,152,921,\d+,\d+,\d+,\d+ bytes are needed, [\d,]+ bytes are free in .*\); make room or",
        sentence,
    )
    assert not hub.fetched()


def test_cached_files_need_no_space(hub: Hub, home: Path) -> None:
    folder = succeed(hub, home, "google/gemma")
    with (folder / SHARD).open("r+b") as file:
        file.truncate(1 << 43)  # sparse: 8 TiB that need no space
    hub.repos["google/gemma"].claimed = {SHARD: 1 << 43}
    assert succeed(hub, home, "google/gemma") == folder


MOUNT = 'mount -t tmpfs -o size=400k tmpfs "$HF_HOME" && exec "$@"'
NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", MOUNT, "sh")


def can_mount() -> bool:
    command = [*NAMESPACE[:4], "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    return bool(shutil.which("unshare")) and subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs a user namespace in which a small disk can be mounted")
def test_a_disk_that_fills_up(hub: Hub, home: Path) -> None:
    home.mkdir()
    hub.repos["google/gemma"].claimed = dict.fromkeys(FOLDER, 0)
    sentence = fail(hub, home, "google/gemma", prefix=NAMESPACE)
    assert re.search(r"the disk is full \(No space left on device, [\d,]+ bytes are free in .*\); make room", sentence)


def test_a_cache_that_cannot_be_written(hub: Hub, home: Path) -> None:
    home.write_bytes(b"")
    assert re.search(r"cannot be written \(.*\); set HF_HOME to another folder", fail(hub, home, "google/gemma"))


def test_progress_is_for_terminals(hub: Hub, home: Path) -> None:
    assert run(hub, home, ("", "google/gemma")).stderr == ""
    shutil.rmtree(home)
    terminal, stderr = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    command = [sys.executable, "-c", SCRIPT, '[["", "google/gemma"]]']
    shown = b""
    with subprocess.Popen(command, env=environment(hub, home), stdout=subprocess.DEVNULL, stderr=stderr) as process:
        os.close(stderr)
        with contextlib.suppress(OSError):  # raised when the process closes its side
            while piece := os.read(terminal, 1000):
                shown += piece
    os.close(terminal)
    assert process.returncode == 0
    assert b"500k" in shown
    assert b"100%" in shown


def test_the_library_is_imported_on_use_only() -> None:
    script = "import sys, gemwright.checkpoint.hub; sys.exit({'huggingface_hub', 'httpx2'} & set(sys.modules) != set())"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
