"""The sandbox against programs that try to leave it or to use up the machine."""

import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from gemwright.errors import GemwrightError
from gemwright.eval import sandbox
from gemwright.eval.sandbox import MIB, PYTHON, Limits, Outcome, Sandbox
from gemwright.eval.sandbox_filter import build_filter

LIMITS = Limits(seconds=20, cpu_seconds=5, memory=256 * MIB, files=8 * MIB, processes=16, output=64 * 1024)
SANDBOXES = [
    pytest.param(one, marks=pytest.mark.skipif(not sandbox.works(one), reason=f"{one.__name__} does not work here"))
    for one in (sandbox.bubblewrap, sandbox.namespaces)
]
pytestmark = pytest.mark.parametrize("isolate", SANDBOXES)


def run(isolate: Sandbox, program: str, limits: Limits = LIMITS) -> Outcome:
    return sandbox._run_in(isolate, [PYTHON, "-I", "main.py"], {"main.py": program}, limits)


def find_processes(mark: str) -> list[str]:
    """Return the command lines of all processes that contain a text."""
    found: list[str] = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [line] if mark in (line := file.read_text()) else []
        except OSError:
            continue
    return found


def test_output_and_status(isolate: Sandbox):
    outcome = run(isolate, "import sys\nprint('printed')\nprint('wrong', file=sys.stderr)")
    assert (outcome.status, sorted(outcome.output.split())) == ("passed", ["printed", "wrong"])
    assert run(isolate, "raise SystemExit(3)").status == "failed"
    failed = run(isolate, "assert 1 + 1 == 3")
    assert failed.status == "failed"
    assert "AssertionError" in failed.output


def test_files_outside_cannot_be_written_or_read(isolate: Sandbox, tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    home = str(Path.home())
    program = f"""
import os
for place in ["/", "/box", "/usr", "/etc", "/dev", {home!r}, {str(tmp_path)!r}, "/var/tmp"]:
    try:
        open(place + "/written", "w").close()
        print("wrote", place)
    except OSError:
        pass
for file in [{str(secret)!r}, "/etc/passwd", "/etc/shadow", {__file__!r}]:
    try:
        print("read", open(file).read()[:1])
    except OSError:
        pass
print(sorted(os.environ))
open(os.environ["TMPDIR"] + "/allowed", "w").write("x")
"""
    os.environ["SECRET_TOKEN"] = "secret"
    outcome = run(isolate, program)
    del os.environ["SECRET_TOKEN"]
    assert outcome.status == "passed", outcome.output
    assert "wrote" not in outcome.output
    assert "read" not in outcome.output
    assert "SECRET" not in outcome.output
    assert not list(tmp_path.glob("written"))


def test_home_holds_nothing(isolate: Sandbox):
    outcome = run(isolate, "import os\nprint(os.listdir(os.environ['HOME']))")
    assert outcome.output.strip() == "[]"


def test_there_is_no_network(isolate: Sandbox):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        program = f"import socket\nprint(socket.if_nameindex())\nsocket.create_connection(('127.0.0.1', {port}), 5)"
        outcome = run(isolate, program)
    assert outcome.status == "failed"
    assert "[(1, 'lo')]" in outcome.output


def test_other_processes_are_out_of_reach(isolate: Sandbox):
    other = subprocess.Popen(["sleep", "60"])
    program = f"""
import os, signal
print(sum(name.isdigit() for name in os.listdir("/proc")))
for process in [{os.getpid()}, {other.pid}, os.getppid(), 1, -1]:
    try:
        os.kill(process, signal.SIGKILL)
    except OSError:
        pass
"""
    outcome = run(isolate, program)
    assert int(outcome.output.split()[0]) < 6
    assert other.poll() is None
    other.kill()
    other.wait()


def test_a_fork_bomb_ends(isolate: Sandbox):
    program = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass  # bomb-{}"
    mark = f"{os.getpid()}-{isolate.__name__}"
    outcome = sandbox._run_in(isolate, [PYTHON, "-c", program.format(mark)], {}, LIMITS)
    assert outcome.status == "processes"
    for _ in range(100):
        if not find_processes(f"bomb-{mark}"):
            return
        time.sleep(0.02)
    pytest.fail("processes are left")


def test_memory_is_limited(isolate: Sandbox):
    outcome = run(isolate, "memory = bytearray(10 * 2**30)")
    assert outcome.status == "failed"
    assert "MemoryError" in outcome.output
    shared = "import mmap\nmemory = mmap.mmap(-1, 2**30)\nfor page in range(0, 2**30, 4096):\n    memory[page] = 1"
    assert run(isolate, shared).status == "memory"
    several = "import os, time\nfor _ in range(3):\n    os.fork()\nmemory = b'1' * (100 * 2**20)\ntime.sleep(30)"
    assert run(isolate, several).status == "memory"


def test_files_are_limited(isolate: Sandbox):
    program = """
import os
for number in range(100):
    for place in (os.environ["TMPDIR"], "/dev/shm"):
        try:
            with open(f"{place}/{number}", "wb") as file:
                file.write(b"x" * 2**20)
        except OSError:
            pass
places = (os.environ["TMPDIR"], "/dev/shm")
print(sum(os.path.getsize(f"{place}/{name}") for place in places for name in os.listdir(place)))
"""
    outcome = run(isolate, program)
    assert int(outcome.output) <= LIMITS.files + MIB


def test_time_is_limited(isolate: Sandbox):
    quick = Limits(seconds=1.5, cpu_seconds=1)
    for program in (
        "import time\ntime.sleep(1e6)",
        "while True: pass",
        "import os, time\nos.close(1)\nos.close(2)\ntime.sleep(60)",
    ):
        outcome = run(isolate, program, quick)
        assert outcome.status == "timeout"
        assert outcome.seconds < 15
    assert run(isolate, "while True: pass", Limits(seconds=60, cpu_seconds=1)).status == "timeout"


def test_output_is_limited(isolate: Sandbox):
    outcome = run(isolate, "while True: print('x' * 1000)")
    assert outcome.status == "output"
    assert len(outcome.output) <= sandbox.SHOWN


def test_processes_in_the_background_end(isolate: Sandbox):
    mark = f"background-{os.getpid()}-{isolate.__name__}"
    program = f"import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(600)  # {mark}"
    assert sandbox._run_in(isolate, [PYTHON, "-c", program], {}, LIMITS).status == "passed"
    time.sleep(0.1)
    assert not find_processes(mark)


def test_privileges_cannot_be_gained(isolate: Sandbox):
    program = """
import ctypes
libc = ctypes.CDLL(None)
assert libc.mount(b"none", b"/usr", b"", 32 | 4096, b"") == -1  # remount, bind
status = open("/proc/self/status").read()
assert "CapBnd:\\t0000000000000000" in status, status
assert "NoNewPrivs:\\t1" in status
try:
    open("/proc/sys/kernel/hostname", "w").write("x")
except OSError:
    print("refused")
"""
    outcome = run(isolate, program)
    assert (outcome.status, outcome.output) == ("passed", "refused\n")


def test_memory_that_nobody_counts_is_refused(isolate: Sandbox):
    if isolate is sandbox.namespaces or build_filter() is None:
        pytest.skip("no filter of system calls")
    program = """
import ctypes, os, subprocess, threading
libc = ctypes.CDLL(None)
new_user = 0x10000000
assert libc.unshare(new_user) == -1
assert libc.syscall(56 if os.uname().machine == "x86_64" else 220, new_user | 17, 0, 0, 0, 0) == -1
try:
    os.memfd_create("file")
except OSError:
    print("refused")
thread = threading.Thread(target=print, args=("thread",))
thread.start()
thread.join()
print(subprocess.run(["echo", "process"], capture_output=True, text=True).stdout)
"""
    assert run(isolate, program).output.split() == ["refused", "thread", "process"]


def test_without_a_sandbox_nothing_runs_unless_told(isolate: Sandbox, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sandbox, "_find_working", lambda: None)
    monkeypatch.delenv(sandbox.UNSAFE, raising=False)
    with pytest.raises(GemwrightError, match="install bubblewrap"):
        sandbox.run(["true"], {})
    monkeypatch.setenv(sandbox.UNSAFE, "1")
    assert sandbox.run([PYTHON, "main.py"], {"main.py": "print(2)"}).output == "2\n"
    limited = sandbox.run([PYTHON, "-c", "while True: pass"], {}, Limits(seconds=1))
    assert limited.status == "timeout"


def test_file_names_are_plain(isolate: Sandbox):
    with pytest.raises(GemwrightError, match="plain file name"):
        sandbox.run(["true"], {"../main.py": ""})
