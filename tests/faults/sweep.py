"""Every system call of a run fails once, with each error that its manual names, or hangs.

    python -m tests.faults.sweep [--part K/N] [--action NAME] [FAULT]...

A FAULT is CALL#NUMBER=ERROR, CALL#NUMBER+=ERROR where all calls after it fail as well, or
CALL#NUMBER=hang, of the action; without one, all are tried. What is wrong with a run is printed
with the arguments that repeat it.
"""

import argparse
import ctypes
import errno
import importlib
import json
import mmap
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from prefetch_cli.__main__ import main as command
from tests.faults import inject
from tests.faults.inject import Fault, Ran

MIB = 1 << 20
_COMMAND = "/usr/bin/touch"
_SNAPSHOT = f"models--org--name/snapshots/{'a' * 40}"
_SAID = "it said "
_MOST_SECONDS = 15.0
_GRACE_SECONDS = 3.0  # for the warmer, behind COMMAND
_SIGNAL_SECONDS = 2.0  # in which a signal ends the run

_NO, _ONLY = _HANGS = ("no", "only")
_WAITING = 4  # such runs at a time on a processor: they mostly wait

_PATH = ("EACCES", "EIO", "ELOOP", "ENOENT", "ENOMEM", "ENOTDIR", "ESTALE", "ETIMEDOUT")
_READ = ("EAGAIN", "EINTR", "EIO", "ESTALE", "ETIMEDOUT")
_REFUSED = ("ENOSYS", "EPERM")
ERRORS: dict[str, Sequence[str]] = {
    **dict.fromkeys(("stat", "lstat", "newfstatat", "statx", "access", "faccessat2"), _PATH),
    **dict.fromkeys(("readlink", "readlinkat", "faccessat"), (*_PATH, "EINVAL")),
    **dict.fromkeys(("open", "openat"), (*_PATH, "EINTR", "EMFILE", "ENFILE", "ENXIO", "EPERM")),
    **dict.fromkeys(("read", "pread64", "preadv", "readv"), _READ),
    "preadv2": (*_READ, "ENOSYS", "EOPNOTSUPP"),
    "fstat": ("EIO", "ENOMEM", "ESTALE"),
    "close": ("EINTR", "EIO"),
    "getdents64": ("EIO", "ENOENT", "ESTALE"),
    "lseek": ("EINVAL", "ESPIPE"),
    "mmap": ("EACCES", "EAGAIN", "ENODEV", "ENOMEM"),
    "munmap": ("EINVAL",),
    "mremap": ("ENOMEM",),
    "mprotect": ("ENOMEM",),
    "madvise": ("EAGAIN", "EFAULT", "EINVAL", "ENOMEM", "EPERM"),
    "mincore": ("EAGAIN", "ENOMEM", "ENOSYS", "EPERM"),
    "cachestat": ("EBADF", "ENOSYS", "EOPNOTSUPP", "EPERM"),
    "fadvise64": ("EINVAL", "EPERM", "ESPIPE"),
    "sendfile": ("EAGAIN", "EINTR", "EINVAL", "EIO", "ENOMEM", "ENOSYS", "EPERM"),
    "write": ("EAGAIN", "EINTR", "EIO", "ENOSPC", "EPIPE"),
    "ioctl": ("EINVAL", "ENOTTY"),
    **dict.fromkeys(("clone", "clone3", "fork", "vfork"), ("EAGAIN", "ENOMEM", "EPERM")),
    "execve": ("E2BIG", "EACCES", "ENOMEM", "ENOENT"),
    **dict.fromkeys(("pipe", "pipe2", "socketpair", "memfd_create"), ("EMFILE", "ENFILE", "EPERM")),
    **dict.fromkeys(("dup", "dup2", "dup3"), ("EBUSY", "EINTR", "EMFILE")),
    "fcntl": ("EAGAIN", "EINVAL", "EMFILE"),
    **dict.fromkeys(("poll", "ppoll", "select", "pselect6"), ("EINTR", "EINVAL", "ENOMEM")),
    **dict.fromkeys(("recvfrom", "recvmsg"), ("EAGAIN", "ECONNRESET", "EINTR", "ENOMEM")),
    **dict.fromkeys(("sendto", "sendmsg"), ("EAGAIN", "EINTR", "ENOBUFS", "EPIPE")),
    **dict.fromkeys(("statfs", "fstatfs"), ("EACCES", "EINTR", "EIO", "ENOSYS", "ESTALE")),
    "rt_sigtimedwait": ("EAGAIN", "EINTR", "EINVAL", "EPERM"),
    **dict.fromkeys(("rt_sigaction", "rt_sigprocmask"), ("EINVAL",)),
    "getcwd": ("EACCES", "ENOENT", "ENOMEM"),
    "getrandom": ("EAGAIN", "EINTR", "ENOSYS"),
    "wait4": ("ECHILD", "EINTR"),
    "pidfd_open": ("EMFILE", "ENODEV", "ENOSYS", "EPERM"),
    "sched_getaffinity": ("EINVAL", "EPERM"),
    "mlock2": ("EAGAIN", "ENOMEM", "ENOSYS", "EPERM"),
    "fsync": ("EINTR", "EIO", "ENOSPC"),
    **dict.fromkeys(("link", "linkat", "rename", "unlink"), ("EACCES", "EEXIST", "EIO", "EXDEV")),
}
# A pipe that nobody reads is waited for; and a socket has what poll(2) says it has.
_AWAITED = {("write", "EAGAIN"), ("recvfrom", "EAGAIN")}
# What the kernel never says of these, or what no program survives: glibc ends the process.
_NEVER = {"mprotect": "a heap or a stack", "sigaltstack": "faulthandler's"}
# A checkpoint may be called wrong for these only.
_OF_THE_PATH = {
    errno.EACCES, errno.ELOOP, errno.ENOENT, errno.ENOTDIR, errno.EPERM, errno.EINVAL, errno.ENXIO,
}  # fmt: skip
_HANGING = {
    *("open", "openat", "read", "pread64", "preadv", "preadv2", "stat", "lstat", "newfstatat"),
    *("statx", "fstat", "getdents64", "readlink", "close", "statfs", "fstatfs", "madvise"),
    *("sendfile", "fadvise64", "cachestat", "mincore", "readlinkat"),
}
# What a storage that fails says to the calls that ask it.
_OF_THE_STORAGE = {errno.EINTR, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, None}


def write_scene(folder: str) -> None:
    """Write a checkpoint, and a cache of a hub that holds it."""
    checkpoint, hub = os.path.join(folder, "model"), os.path.join(folder, "hub")
    os.makedirs(checkpoint)
    names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    header = b'{"t":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (2 * MIB, 2 * MIB)
    for name in names:
        with open(os.path.join(checkpoint, name), "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header + os.urandom(2 * MIB))
    weights = {f"t{number}": name for number, name in enumerate(names)}
    for name, content in (
        ("model.safetensors.index.json", {"weight_map": weights}),
        ("config.json", {"architectures": ["LlamaForCausalLM"]}),
        ("tokenizer.json", {}),
    ):
        with open(os.path.join(checkpoint, name), "w", encoding="utf-8") as text:
            json.dump(content, text)
    snapshot = os.path.join(hub, _SNAPSHOT)
    os.makedirs(os.path.dirname(snapshot))
    shutil.copytree(checkpoint, snapshot)
    os.makedirs(os.path.join(hub, "models--org--name", "refs"))
    with open(os.path.join(hub, "models--org--name", "refs", "main"), "w") as ref:
        ref.write("a" * 40)
    os.sync()


class Scene:
    """A folder that `write_scene` wrote, and one for what a run puts out."""

    def __init__(self, folder: str, outputs: str) -> None:
        self.checkpoint = os.path.join(folder, "model")
        self.hub = os.path.join(folder, "hub")
        self.outputs = os.path.join(outputs, "outputs")
        self.started = os.path.join(self.outputs, "started")
        os.makedirs(self.outputs)
        snapshot = os.path.join(self.hub, _SNAPSHOT)
        self.files = [
            os.path.join(self.checkpoint, name) for name in sorted(os.listdir(self.checkpoint))
        ]
        self.snapshot = [os.path.join(snapshot, os.path.basename(path)) for path in self.files]
        self.sizes = {path: os.path.getsize(path) for path in (*self.files, *self.snapshot)}
        self._before = self.fingerprint()

    def fingerprint(self) -> list[tuple[str, int, int]]:
        """Return what no run may change."""
        found = []
        for folder in (self.checkpoint, self.hub):
            for root, _, names in os.walk(folder):
                for name in names:
                    status = os.stat(os.path.join(root, name))
                    found.append((os.path.join(root, name), status.st_size, status.st_mtime_ns))
        return sorted(found)

    @property
    def unchanged(self) -> bool:
        """Whether nothing was written."""
        return self.fingerprint() == self._before

    def prepare(self, warm: float, files: Sequence[str]) -> None:
        """Make so much of each file resident, and forget what the last run put out."""
        for path in files:
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            os.pread(descriptor, int(self.sizes[path] * warm), 0)
            os.close(descriptor)
        shutil.rmtree(self.outputs)
        os.makedirs(self.outputs)


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p


def resident_bytes(paths: Sequence[str]) -> int:
    """Return what mincore(2) says as root: shares no code with the tool."""
    total = 0
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        size = os.fstat(descriptor).st_size
        if size:
            address = ctypes.c_void_p(
                _libc.mmap(None, ctypes.c_size_t(size), 1, 1, descriptor, ctypes.c_long(0))
            )
            pages = -(-size // mmap.PAGESIZE)
            vector = (ctypes.c_ubyte * pages)()
            _libc.mincore(address, ctypes.c_size_t(size), vector)
            _libc.munmap(address, ctypes.c_size_t(size))
            resident = [number for number in range(pages) if vector[number] & 1]
            total += sum(min(mmap.PAGESIZE, size - number * mmap.PAGESIZE) for number in resident)
        os.close(descriptor)
    return total


@dataclass(frozen=True)
class Action:
    """One kind of run."""

    name: str
    arguments: Callable[[Scene], Sequence[str]]
    warm: float = 0.0  # of each file, before it
    claims: str = "warm"  # what it leaves: warm, cold, or nothing of all files
    json: bool = True
    starts: bool = False  # COMMAND
    of_hub: bool = False
    full: bool = True  # all of the files are meant


def _prefetch(*more: str) -> Callable[[Scene], Sequence[str]]:
    return lambda scene: ("--force", "--json", *more, scene.checkpoint)


ACTIONS = [
    Action("auto", _prefetch()),
    *(
        Action(engine, _prefetch("--engine", engine))
        for engine in ("populate", "advise", "splice", "read")
    ),
    Action("partial", _prefetch("--max-bytes", "3MiB"), full=False),
    Action("rank", _prefetch("--rank", "1", "--world-size", "2"), full=False),
    Action("verify", _prefetch("--verify")),
    Action(
        "metrics",
        lambda scene: (
            "--force",
            "--json",
            "--metrics",
            f"{scene.outputs}/a.prom",
            scene.checkpoint,
        ),
    ),
    Action(
        "check", lambda scene: ("--check", "--json", scene.checkpoint), warm=0.5, claims="as it was"
    ),
    Action(
        "check-cold",
        lambda scene: ("--check", "--min-resident", "99", "--json", scene.checkpoint),
        claims="as it was",
    ),
    Action("evict", lambda scene: ("--evict", "--json", scene.checkpoint), warm=1.0, claims="cold"),
    Action("dry-run", lambda scene: ("--dry-run", "--json", scene.checkpoint), claims="as it was"),
    Action(
        "trial",
        lambda scene: ("--dry-run", "--trial", "--json", scene.checkpoint),
        claims="nothing",
    ),
    Action("list", lambda scene: ("--list", scene.checkpoint), json=False, claims="as it was"),
    Action(
        "hub",
        lambda scene: ("--force", "--json", "--cache-dir", scene.hub, "org/name"),
        of_hub=True,
    ),
    Action(
        "command",
        lambda scene: ("--force", scene.checkpoint, "--", _COMMAND, scene.started),
        json=False,
        starts=True,
    ),
    Action(
        "libraries",
        lambda scene: (
            "--force",
            "--json",
            "--python",
            sys.executable,
            "--package",
            "click",
            scene.checkpoint,
        ),
    ),
]


def wrong(
    scene: Scene, action: Action, fault: Fault | None, ran: Ran, patience: float = 1.0
) -> Iterator[str]:
    """Yield what is wrong with a run; `patience` is for a slow machine."""
    if ran.code is None:
        yield "it did not end"
        return
    if ran.left:
        yield "a process was left"
    if ran.held_seconds is not None and ran.held_seconds > patience * _SIGNAL_SECONDS:
        yield f"a signal ended it after {ran.held_seconds:.1f} s"
    for word in ("Traceback", "found a defect", "Exception ignored", "Error in sys"):
        if word in ran.errors or word in ran.output:
            yield f"{_SAID}{word!r}"
    if not scene.unchanged:
        yield "a file was changed"
    document = None
    writing = fault is not None and fault.call == "write"
    if action.json and not (writing or ran.code < 0):
        try:
            document = json.loads(ran.output)
        except ValueError:
            yield "its output is no JSON document"
    held = ran.held_seconds is not None
    allowed = {0, 1, 4} if not held else {0, 1, 4, 143}
    error = None if fault is None else fault.error
    if error in _OF_THE_PATH:
        allowed |= {3}
    if action.starts and _COMMAND in ran.errors:  # it cannot be looked at, or executed
        allowed |= {126, 127}
    if action.starts and held:  # by default, until the warmer answers it
        allowed |= {-signal.SIGTERM}
    if ran.code not in allowed:
        yield f"exit code {ran.code}"
    if ran.code == 1 and not ran.errors and not writing:
        yield "exit code 1 without a word"
    started = os.path.exists(scene.started)
    if action.starts and not started and ran.code not in {3, 126, 127} and not held:
        yield f"COMMAND was not started (exit code {ran.code})"
    if document is not None:
        yield from _false_claims(scene, action, document, ran.code, held=held)


def _false_claims(
    scene: Scene, action: Action, document: dict[str, Any], code: int, *, held: bool
) -> Iterator[str]:
    files = scene.snapshot if action.of_hub else scene.files
    truth, total = resident_bytes(files), sum(scene.sizes[path] for path in files)
    result, residency = document.get("result") or {}, document.get("residency") or {}
    error = document.get("error")
    if code != document["exit_code"] and not held:  # the signal may come behind the document
        yield f"exit code {code}, and {document['exit_code']} in the document"
    libraries = document.get("libraries") or {}
    parts = (result, document.get("checkpoint"), libraries, libraries.get("result"))
    failed = [one for part in parts if part for one in part.get("failed", ())]
    if code in (1, 3) and not error and not failed:
        yield f"exit code {code} without a reason in the document"
    if not action.full or failed:
        return  # of what has failed nothing is claimed
    slack = 0.02 * total
    after, low = residency.get("after_bytes"), residency.get("low_bytes")
    whole = residency.get("total_bytes", 0) >= 0.99 * total
    if whole and low is not None:
        if not low - slack <= truth <= residency["high_bytes"] + slack:
            yield f"it says that {low:,} bytes and more are resident, and {truth:,} are"
    elif whole and after is not None and abs(after - truth) > slack:
        yield f"it says that {after:,} bytes are resident, and {truth:,} are"
    complete = result.get("complete") is True
    if complete and action.claims == "cold" and truth > slack:
        yield f"it says complete, and {truth:,} bytes are resident"
    if action.claims == "warm" and truth < total - slack:
        if complete:
            yield f"it says complete, and {truth:,} of {total:,} bytes are resident"
        if code == 0 and not document.get("warnings"):
            yield f"exit code 0 without a warning, and {truth:,} of {total:,} bytes are resident"


class Sweep:
    """Runs actions with faults."""

    def __init__(self, scene: Scene, patience: float = 1.0) -> None:
        self.scene = scene
        self._patience = patience
        _import_all()

    def run(self, action: Action, fault: Fault | None) -> tuple[Ran, list[str]]:
        """Return a run, and what is wrong with it."""
        scene = self.scene
        scene.prepare(action.warm, scene.snapshot if action.of_hub else scene.files)
        arguments = action.arguments(scene)

        def main() -> None:
            sys.argv = ["prefetch-cli", *arguments]
            command()

        patience = self._patience
        ran = inject.run(
            main,
            fault,
            scene.outputs,
            most_seconds=patience * _MOST_SECONDS,
            grace_seconds=patience * _GRACE_SECONDS,
        )
        return ran, list(wrong(scene, action, fault, ran, patience))

    def faults(self, action: Action, *, lasting: bool = False) -> list[Fault]:
        """Return every fault of an action; of those that last, none that is waited for."""
        ran, problems = self.run(action, None)
        if problems:
            raise RuntimeError(
                f"{action.name}: without a fault: {problems}: {ran.errors}{ran.output}"
            )
        return [
            Fault(call, at, None if name == "hang" else getattr(errno, name), lasting=lasting)
            for call, count in sorted(ran.calls.items())
            if call not in _NEVER
            for at in range(1, count + 1)
            for name in (*ERRORS.get(call, _REFUSED), *(("hang",) if call in _HANGING else ()))
            if not (lasting and (name in {"EINTR", "hang"} or (call, name) in _AWAITED))
        ]


def _import_all() -> None:
    import prefetch_cli  # noqa: PLC0415

    for module in pkgutil.walk_packages(prefetch_cli.__path__, "prefetch_cli."):
        importlib.import_module(module.name)
    for name in (
        "importlib.metadata",
        "subprocess",
        "fcntl",
        "rich.console",
        "rich.progress",
        "csv",
        "email.parser",
        "encodings.idna",
        "difflib",
        "hashlib",
        "json",
        "tempfile",
        "selectors",
        "zipfile",
        "termios",
        "select",
        "ctypes",
    ):
        importlib.import_module(name)


def parse_fault(text: str) -> Fault:
    call, _, rest = text.partition("#")
    at, _, name = rest.partition("=")
    error = None if name == "hang" else getattr(errno, name)
    return Fault(call, int(at.rstrip("+")), error, lasting=at.endswith("+"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.sweep", description=__doc__)
    parser.add_argument("--part", default="1/1", metavar="K/N")
    parser.add_argument("--action", action="append", choices=[one.name for one in ACTIONS])
    parser.add_argument("--hangs", choices=_HANGS, help="no hangs, or nothing else (both in turn)")
    parser.add_argument("--lasting", action="store_true", help="no call gets over its error")
    parser.add_argument("--jobs", type=int, metavar="N", help="at a time (by the processors)")
    parser.add_argument("--show", action="store_true", help="what the run put out")
    parser.add_argument("--telling", type=int, metavar="N", help="so many, all of the storage's")
    parser.add_argument("--make", metavar="FOLDER", help="only write there what the runs read")
    parser.add_argument("--within", metavar="FOLDER", help="where that lies, on any mount")
    parser.add_argument("--patience", type=float, default=1.0, help="times the limits in seconds")
    parser.add_argument("faults", nargs="*", type=parse_fault)
    given = parser.parse_args()
    if given.make:
        write_scene(given.make)
        return 0
    counts: Counter[str] = Counter()
    for counted in _counted(given):
        counts += counted
        print(", ".join(f"{count:,} {what}" for what, count in counted.items()), flush=True)
    return 1 if counts["wrong"] else 0


def _counted(given: argparse.Namespace) -> Iterator[Counter[str]]:
    """Yield the counts of the runs without hangs, then of those with."""
    part, parts = map(int, given.part.split("/"))
    if given.faults or given.show or given.jobs == 1:
        yield _one_by_one(given, part, parts)
        return
    processors = len(os.sched_getaffinity(0))
    kinds = [_NO] if given.lasting else _HANGS
    for hangs in kinds if given.hangs is None else (given.hangs,):
        least = _WAITING * processors if hangs == _ONLY else processors
        yield _at_once(part, parts, given.jobs or least, hangs)


def _at_once(part: int, parts: int, jobs: int, hangs: str) -> Counter[str]:
    """Return the counts of a part, after several processes have each run a part of it."""
    words = [sys.executable, *sys.orig_argv[1:], "--jobs", "1", "--hangs", hangs, "--part"]
    running = [
        subprocess.Popen(
            [*words, f"{part + parts * job}/{parts * jobs}"], stdout=subprocess.PIPE, text=True
        )
        for job in range(jobs)
    ]
    counts: Counter[str] = Counter()
    for one in running:
        assert one.stdout is not None
        *problems, last = one.stdout.read().splitlines()
        for line in problems:
            print(line, flush=True)
        for found in last.split(", "):
            count, what = found.split()
            counts[what] += int(count.replace(",", ""))
        if one.wait() > 1:
            raise RuntimeError(f"a part of the sweep ended with {one.returncode}")
    return counts


def _one_by_one(given: argparse.Namespace, part: int, parts: int) -> Counter[str]:
    with tempfile.TemporaryDirectory(prefix="sweep-") as folder:
        where = given.within
        if where is None:
            where = os.path.join(folder, "scene")
            write_scene(where)
        return _tried(Sweep(Scene(where, folder), given.patience), given, part, parts)


def _tried(sweep: Sweep, given: argparse.Namespace, part: int, parts: int) -> Counter[str]:
    counts: Counter[str] = Counter()
    began = time.monotonic()
    cases = [
        (action, fault)
        for action in ACTIONS
        if not given.action or action.name in given.action
        for fault in given.faults or sweep.faults(action, lasting=given.lasting)
        if given.hangs is None or (given.hangs == _ONLY) == (fault.error is None)
    ]
    if given.telling:
        cases = [
            one for one in cases if one[1].call in _HANGING and one[1].error in _OF_THE_STORAGE
        ]
        cases = [cases[at * len(cases) // given.telling] for at in range(given.telling)]
    last = None
    for action, fault in cases[part - 1 :: parts]:
        if action is not last:
            seconds = time.monotonic() - began
            print(f"after {seconds:.0f} s: {action.name}", file=sys.stderr, flush=True)
            last = action
        ran, problems = sweep.run(action, fault)
        counts["runs"] += 1
        counts["reached"] += ran.reached
        line = f"--action {action.name} {fault}: {'; '.join(problems)}"
        defects = [one for one in problems if one.startswith(_SAID)]
        if problems and not defects and not sweep.run(action, fault)[1]:
            # The kernel may have taken pages. A defect needs no second run: threads take turns as
            # they like.
            print(f"once only: {line}", file=sys.stderr, flush=True)
        elif problems:
            counts["wrong"] += 1
            print(line, flush=True)
            if defects:
                print(ran.errors, file=sys.stderr, flush=True)
        if given.show:
            print(ran, flush=True)
    return counts


if __name__ == "__main__":
    sys.exit(main())
