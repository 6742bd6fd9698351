"""Run a command to which the kernel refuses system calls, as container profiles do.

    python -m tests.faults.refuse CALL=ERROR... -- COMMAND [ARG]...

The filter is seccomp's (seccomp(2)): the command inherits it and cannot remove it. The numbers come
from the kernel's tables, include/uapi/linux/seccomp.h and include/uapi/linux/bpf_common.h.
"""

import ctypes
import errno
import os
import struct
import sys

_NUMBERS = {
    "x86_64": {
        "cachestat": 451,
        "fadvise64": 221,
        "ioprio_set": 251,
        "madvise": 28,
        "memfd_create": 319,
        "mincore": 27,
        "preadv2": 327,
        "sendfile": 40,
    },
    "aarch64": {
        "cachestat": 451,
        "fadvise64": 223,
        "ioprio_set": 30,
        "madvise": 233,
        "memfd_create": 279,
        "mincore": 232,
        "preadv2": 286,
        "sendfile": 71,
    },
}
CALLS = _NUMBERS.get(os.uname().machine)  # None: not known for this machine
_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 38, 22, 2
_LOAD_NUMBER, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def main() -> None:
    """Install the filter, then exec the command."""
    split = sys.argv.index("--")
    rules = dict(argument.split("=") for argument in sys.argv[1:split])
    code = struct.pack("=HBBI", _LOAD_NUMBER, 0, 0, 0)
    for call, error in rules.items():
        number = (CALLS or {})[call]
        code += struct.pack("=HBBI", _JUMP_EQUAL, 0, 1, number)
        code += struct.pack("=HBBI", _RETURN, 0, 0, _ERROR | getattr(errno, error))
    code += struct.pack("=HBBI", _RETURN, 0, 0, _ALLOW)
    instructions = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.cast(instructions, ctypes.c_void_p))
    libc = ctypes.CDLL(None, use_errno=True)
    word = ctypes.c_ulong
    if libc.prctl(_NO_NEW_PRIVS, word(1), word(0), word(0), word(0)) or libc.prctl(
        _SET_SECCOMP, word(_FILTER), ctypes.byref(program)
    ):
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
    os.execv(sys.argv[split + 1], sys.argv[split + 1 :])


if __name__ == "__main__":
    main()
