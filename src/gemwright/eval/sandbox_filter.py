"""The filter of system calls of the sandbox: no namespaces and no anonymous files, whose memory nobody counts."""

import errno
import platform
import struct
from typing import Final

_NUMBERS: Final = {  # by machine: its audit number, then system calls (memfd_create, unshare, setns, clone3, clone)
    "x86_64": (0xC000003E, (319, 272, 308), 435, 56),
    "aarch64": (0xC00000B7, (279, 97, 268), 435, 220),
}
_X32 = 0x40000000  # system calls of x86_64's other interface begin here
_NEW_USER = 0x10000000  # the flag of a new user namespace
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in the kernel's struct seccomp_data
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000


def build_filter() -> bytes | None:
    """Return the filter as the kernel's classic BPF (`man 2 seccomp`), or None on other machines."""
    if platform.machine() not in _NUMBERS:
        return None
    architecture, denied, clone3, clone = _NUMBERS[platform.machine()]
    missing, refused = _ERROR | errno.ENOSYS, _ERROR | errno.EPERM
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, missing),
    ]
    for number in denied:
        steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, refused)]
    steps += [(_EQUAL, 0, 1, clone3), (_RETURN, 0, 0, missing)]  # libraries then use clone, whose flags can be read
    steps += [(_EQUAL, 0, 3, clone), (_LOAD, 0, 0, _FIRST_ARGUMENT), (_ANY_BIT, 0, 1, _NEW_USER)]
    steps += [(_RETURN, 0, 0, refused), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
