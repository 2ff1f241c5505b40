"""Run code written by a model: without a network, outside its files, within limits.

`run` isolates a program with bubblewrap, or with the namespaces of `unshare` where bubblewrap does not work. It refuses
to run without either, unless the environment variable `GEMWRIGHT_RUN_UNSAFE_CODE` is 1.
"""

import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Final, Literal

from gemwright.errors import GemwrightError
from gemwright.eval.sandbox_filter import build_filter

UNSAFE: Final = "GEMWRIGHT_RUN_UNSAFE_CODE"
"""The environment variable that permits programs to run unprotected where there is no sandbox."""
POLL_SECONDS: Final = 0.02
"""Seconds between two looks at the memory and the number of the processes."""
SHOWN: Final = 4000
"""Characters of output that are kept, the last ones."""
MIB: Final = 2**20
"""Bytes of a mebibyte."""
PYTHON: Final = str(Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}")
"""The Python that runs programs: this one, without the packages of its virtual environment."""

_NOBODY = "65534"
_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/alternatives", "/etc/ld.so.cache")

Status = Literal["passed", "failed", "timeout", "memory", "processes", "output"]
"""How a program ended: with exit status 0, with another, or at the limit that it exceeded."""


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: Wall-clock time of the whole command.
        cpu_seconds: CPU time of each process.
        memory: Bytes of memory of all processes together.
        files: Bytes of all files that it writes, which are in memory too.
        processes: Number of processes and threads.
        output: Bytes of standard output and error together.
    """

    seconds: float = 15.0
    cpu_seconds: int = 5
    memory: int = 1024 * MIB
    files: int = 64 * MIB
    processes: int = 64
    output: int = MIB // 4


@dataclass(frozen=True)
class Outcome:
    """The end of a program.

    Attributes:
        status: How it ended.
        output: The last 4,000 characters of its standard output and error.
        seconds: Wall-clock time that it took.
    """

    status: Status
    output: str
    seconds: float


@dataclass(frozen=True)
class Place:
    """Folders for one run: `box` has the program's files, `root` and `tmp` are empty."""

    box: Path
    root: Path
    tmp: Path


Sandbox = Callable[[Place, Limits, Sequence[str]], list[str]]
"""Returns the command line that runs a command in isolation."""


def run(command: Sequence[str], files: Mapping[str, str], limits: Limits | None = None) -> Outcome:
    """Run a command in a sandbox, in a read-only folder that holds the given files.

    It sees the programs and libraries of the system and of this Python; no network, no environment variable of ours,
    no other file and no other process. It can write to the folder `$TMPDIR` only, which is in memory and vanishes.

    Args:
        command: Program and arguments; paths of files are relative.
        files: Texts by file name.
        limits: What it may use.

    Raises:
        GemwrightError: There is no sandbox and running unsafe code is not permitted, or a file has no plain name.
    """
    limits = limits or Limits()
    return _run_in(find_sandbox(), command, files, limits)


def find_sandbox() -> Sandbox:
    """Return the first sandbox that works on this machine.

    Raises:
        GemwrightError: None does, and running unsafe code is not permitted.
    """
    if found := _find_working():
        return found
    if os.environ.get(UNSAFE) == "1":
        return unprotected
    raise GemwrightError(
        "Code written by a model runs in a sandbox only, and neither bubblewrap nor unshare works on this machine: "
        f"install bubblewrap (apt install bubblewrap), or accept the risk with --confirm-run-unsafe-code ({UNSAFE}=1)."
    )


@cache
def _find_working() -> Sandbox | None:
    return next((sandbox for sandbox in (bubblewrap, namespaces) if works(sandbox)), None)


def works(sandbox: Sandbox) -> bool:
    """Return whether a sandbox runs a program on this machine."""
    try:
        return _run_in(sandbox, ["true"], {}, Limits()).status == "passed"
    except OSError:
        return False


def bubblewrap(place: Place, limits: Limits, command: Sequence[str]) -> list[str]:
    """Isolate a command with bubblewrap."""
    words = ["bwrap", "--die-with-parent", "--new-session"]
    if calls := build_filter():
        (place.root / "filter").write_bytes(calls)
        words = ["sh", "-c", 'exec "$@" 9<"$0"', str(place.root / "filter"), *words, "--seccomp", "9"]
    words += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    if os.geteuid() == 0:  # `_drop_privileges` needs these, and drops them
        words += ["--cap-drop", "ALL", *(f"--cap-add=CAP_{name}" for name in ("SETUID", "SETGID", "SETPCAP"))]
        words = [part for word in words for part in word.split("=")]
    else:
        words += ["--unshare-user", "--uid", _NOBODY, "--gid", _NOBODY]
    for path in _readable():
        for parent in reversed(path.parents[:-1]):  # a home's closed parents would be closed to another user
            words += ["--perms", "0755", "--dir", str(parent)]
        link = path.is_symlink()
        words += ["--symlink" if link else "--ro-bind", str(path.readlink() if link else path), str(path)]
    words += ["--proc", "/proc", "--dev", "/dev", *_scratch("/dev/shm", MIB), "--remount-ro", "/dev"]
    words += [*_scratch("/tmp", limits.files), "--ro-bind", str(place.box), "/box"]
    return [*words, "--remount-ro", "/", "--chdir", "/box", "--", *_drop_privileges(), *_limit(limits), *command]


def _scratch(path: str, size: int) -> list[str]:
    return ["--perms", "1777", "--size", str(size), "--tmpfs", path]


def namespaces(place: Place, limits: Limits, command: Sequence[str]) -> list[str]:
    """Isolate a command with `unshare` and `pivot_root` in the same way, but without a filter of system calls."""
    words = ["setpriv", "--pdeathsig=KILL", "unshare", "--fork", "--kill-child"]
    words += ["--mount", "--net", "--pid", "--ipc", "--uts"]
    words += [] if os.geteuid() == 0 else ["--map-root-user"]
    words += ["--", "sh", "-c", _BUILD_ROOT, "sh", str(place.root), str(place.box), str(limits.files)]
    return [*words, *map(str, _readable()), "--", *_drop_privileges(), *_limit(limits), *command]


_BUILD_ROOT = r"""
set -e
root=$1 box=$2 size=$3
shift 3
show() { mount --rbind "$1" "$2"; mount -o remount,bind,ro,nosuid "$2"; }
mount -t tmpfs -o mode=755,size=1m sandbox "$root"
cd "$root"
mkdir proc tmp box old dev dev/shm
while [ "$1" != -- ]; do
  mkdir -p "./${1%/*}"
  if [ -L "$1" ]; then ln -s "$(readlink "$1")" ".$1"
  elif [ -d "$1" ]; then mkdir -p ".$1"; show "$1" ".$1"
  else : >".$1"; show "$1" ".$1"
  fi
  shift
done
shift
show "$box" box
mount -t proc proc proc
mount -t tmpfs -o "mode=1777,nosuid,nodev,size=$size" files tmp
mount -t tmpfs -o mode=1777,nosuid,nodev,size=1m shm dev/shm
for name in null zero full random urandom; do : >"dev/$name"; mount --bind "/dev/$name" "dev/$name"; done
ln -s /proc/self/fd dev/fd
pivot_root . old
umount -l old
mount -o remount,bind,ro /
cd /box
"$@" || exit $?  # not exec: the kernel spares the first process from signals
"""


def unprotected(place: Place, limits: Limits, command: Sequence[str]) -> list[str]:
    """Run a command within limits, but with all that the user may do."""
    del place
    return [*(_limit(limits) if shutil.which("prlimit") else []), *command]


def _readable() -> list[Path]:
    """Return the folders and files that programs need to run."""
    python = Path(sys.base_prefix)
    own = [] if python.is_relative_to("/usr") else [python]
    return [path for path in (*map(Path, _SYSTEM), *Path("/etc").glob("java*"), *own) if path.exists()]


def _drop_privileges() -> list[str]:
    words = ["setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
    if os.geteuid() != 0:
        return words
    # Root becomes another user: the number of its processes cannot be limited, and it could write to /proc/sys.
    return [*words, f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]


def _limit(limits: Limits) -> list[str]:
    """Return the start of a command that limits each process; `_supervise` limits all of them together.

    The limit of private memory, unlike that of address space, lets virtual machines reserve what they do not use.
    The kernel counts processes by user, which parallel runs share.
    """
    words = ["prlimit", f"--data={limits.memory}", f"--fsize={limits.files}", f"--nproc={4 * limits.processes}"]
    return [*words, f"--cpu={limits.cpu_seconds}:{limits.cpu_seconds + 1}", "--core=0", "--nofile=256", "--"]


def _run_in(sandbox: Sandbox, command: Sequence[str], files: Mapping[str, str], limits: Limits) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="gemwright-code-") as folder:
        place = Place(*(Path(folder) / name for name in ("box", "root", "tmp")))
        for path in (Path(folder), place.box, place.root, place.tmp):
            path.mkdir(exist_ok=True)
            path.chmod(0o755)  # the program runs as another user
        for name, text in files.items():
            if Path(name).name != name:
                raise GemwrightError(f"{name!r} is no plain file name: name the files of a program without folders.")
            (place.box / name).write_text(text, encoding="utf-8", errors="replace")
        tmp = str(place.tmp) if sandbox is unprotected else "/tmp"
        environment = {"PATH": _PATH, "HOME": tmp, "TMPDIR": tmp, "LANG": "C.UTF-8"}
        return _supervise(sandbox(place, limits, command), place.box, environment, limits)


def _supervise(command: Sequence[str], folder: Path, environment: Mapping[str, str], limits: Limits) -> Outcome:
    """Run a command until it ends or exceeds a limit; then end it with all that it started."""
    start = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    with process.stdout as stream:
        try:
            status, output = _watch(process, stream, start + limits.seconds, limits)
        finally:
            _kill(process)
    shown = output.decode("utf-8", errors="replace")[-SHOWN:]
    return Outcome(status, shown, time.monotonic() - start)


def _watch(
    process: "subprocess.Popen[bytes]", stream: IO[bytes], deadline: float, limits: Limits
) -> tuple[Status, bytes]:
    output = bytearray()
    os.set_blocking(stream.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while True:
            open_ = bool(selector.get_map())
            if open_ and selector.select(POLL_SECONDS) and not _read(stream, output):
                selector.unregister(stream)
            elif not open_:
                time.sleep(POLL_SECONDS)
            if len(output) > limits.output:
                return "output", bytes(output)
            if (code := process.poll()) is not None:
                _read(stream, output)
                return _name_end(code), bytes(output)
            if time.monotonic() > deadline:
                return "timeout", bytes(output)
            if exceeded := _measure(process.pid, limits):
                return exceeded, bytes(output)


def _read(stream: IO[bytes], output: bytearray) -> bool:
    """Read what is there; return whether more may follow."""
    chunk = stream.read(MIB)
    output += chunk or b""
    return chunk != b""


def _name_end(code: int) -> Status:
    if code == 0:
        return "passed"
    return "timeout" if code in (-signal.SIGXCPU, 128 + signal.SIGXCPU) else "failed"


def _measure(pid: int, limits: Limits) -> Literal["memory", "processes"] | None:
    """Return the limit that a process and all that it started exceed together."""
    processes, memory, waiting = -4, 0, [pid]  # up to four belong to the sandbox
    while waiting:
        folder = Path(f"/proc/{waiting.pop()}")
        try:
            threads = list((folder / "task").iterdir())
            for thread in threads:
                waiting += map(int, (thread / "children").read_text().split())
            status = (folder / "status").read_text()
        except (OSError, ValueError):  # it has ended, or there is no /proc
            continue
        processes += len(threads)
        fields = dict(line.split(":", 1) for line in status.splitlines())
        memory += sum(int(fields.get(name, "0 kB").split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))
        if processes > limits.processes:
            return "processes"
    return "memory" if memory > limits.memory else None


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End a process and its group; the sandbox ends with its first process."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
