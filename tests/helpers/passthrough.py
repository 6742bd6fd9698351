"""A hand-written FUSE file system that passes a folder through, with the faults of real storage.

    python -m tests.helpers.passthrough SOURCE MOUNTPOINT [OPTION]...

    --keep-cache           cached pages outlive the next open (FOPEN_KEEP_CACHE)
    --direct-io            nothing is cached (FOPEN_DIRECT_IO)
    --fail-read OFFSET     a read that touches this offset of a file fails (EIO)
    --fail-open            opening a file fails (EIO)
    --short BYTES          a read returns at most this many bytes, which --direct-io passes on
    --hang-from OFFSET     a read that reaches beyond this offset of a file never returns
    --fail-flush           closing a file fails (EIO)
    --hang-flush           closing a file never returns
    --delay SECONDS        each read takes this long; concurrent reads wait side by side
    --rate BYTES           all reads together pass at most this many bytes a second
    --max-background N     at most N read-aheads are in flight (the kernel's own limit: 12)
    --allow-other          usable by all users, not just the one who mounted it
    --default-permissions  the kernel checks file modes; without it nobody does
    --subtype NAME         mounted as `fuse.NAME`, not as `fuse`
    --source NAME          what mountinfo shows as mounted: `passthrough` without it
    --log FILE             each read that the kernel asks for becomes a line of FILE, see `reads`

It prints `mounted` and serves until it is unmounted, gets SIGTERM, or the pipe on its standard
input closes; then it unmounts. It dies with its parent. Nothing may be mounted on MOUNTPOINT.

The server is always a process of its own: a system call or a page fault that waits for it may hold
Python's GIL, which a server in a thread would need to answer. To look at the mount from Python, use
yet another process: see `answered`.

Source of the numbers: include/uapi/linux/fuse.h, protocol 7.31. Mounting needs root. The kernel
aborts all waiting requests when the server ends or the mount is forced off.
"""

# Few imports and no dataclasses: the rest would cost a second in an emulated test machine.
import contextlib
import ctypes
import errno
import os
import signal
import stat
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_MAY_NOT_MOUNT = 77  # the exit code; any other failure is a defect
_LONGEST_MOUNT_SECONDS = 10
_LONGEST_LOOK_SECONDS = 20

_LOOKUP, _FORGET, _GETATTR, _READLINK, _OPEN, _READ, _STATFS = 1, 2, 3, 5, 14, 15, 17
_RELEASE, _FLUSH, _INIT, _OPENDIR, _READDIR, _RELEASEDIR = 18, 25, 26, 27, 28, 29
_INTERRUPT, _BATCH_FORGET = 36, 42
_NEVER_ANSWERED = {_FORGET, _BATCH_FORGET, _INTERRUPT}  # so killing a hung reader does not free it

_ASYNC_READ, _AUTO_INVAL_DATA, _PARALLEL_DIROPS, _MAX_PAGES = 1, 1 << 12, 1 << 18, 1 << 22
_WANTED = _ASYNC_READ | _AUTO_INVAL_DATA | _PARALLEL_DIROPS | _MAX_PAGES
_FOPEN_DIRECT_IO, _FOPEN_KEEP_CACHE = 1, 2
_LARGEST_READ_BYTES = 1 << 20
_BUFFER_BYTES = 1 << 16  # for requests: only writes are larger, and the mount is read-only
_LARGEST_WRITE_BYTES = 4096
_VALID_SECONDS = 1  # how long the kernel caches names and attributes
_BACKGROUND = 12

_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4
_MNT_FORCE, _MNT_DETACH = 1, 2  # abort waiting requests; detach even if in use
_PR_SET_PDEATHSIG = 1

_ROOT_NODE = 1
_HEADER = struct.Struct("=IIQQIIII")  # length, opcode, unique, node, uid, gid, pid, padding
_ANSWER = struct.Struct("=IiQ")
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
_ENDINGS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}

_libc = ctypes.CDLL(None, use_errno=True)


class Options:
    """The command line's options; offsets and sizes in bytes."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.keep_cache = self.direct_io = self.fail_open = False
        self.fail_flush = self.hang_flush = False
        self.allow_other = self.default_permissions = False
        self.fail_read: int | None = None
        self.hang_from: int | None = None
        self.short: int | None = None
        self.max_background = _BACKGROUND
        self.delay = 0.0
        self.rate: int | None = None
        self.subtype = self.log = ""
        self.source = "passthrough"
        kinds: dict[str, Callable[[str], object]] = {
            "fail_read": int,
            "hang_from": int,
            "short": int,
            "max_background": int,
            "delay": float,
            "rate": int,
            "subtype": str,
            "source": str,
            "log": str,
        }
        left = iter(arguments)
        for argument in left:
            name = argument[2:].replace("-", "_")
            if not argument.startswith("--") or not hasattr(self, name):
                raise ValueError(f"expected an option, found {argument!r}")
            setattr(self, name, kinds[name](next(left, "")) if name in kinds else True)


class Server:
    """The mounted file system: answers the kernel from the source folder."""

    def __init__(self, source: str, mountpoint: str, options: Options) -> None:
        self._options = options
        self._mountpoint = os.fsencode(os.path.abspath(mountpoint))
        root = os.fsencode(os.path.abspath(source))
        # Device and inode identify a file: they never change, and hard links share pages.
        self._paths = {_ROOT_NODE: root}
        self._keys = {_ROOT_NODE: _key(os.lstat(root))}
        self._nodes = {key: node for node, key in self._keys.items()}
        self._folders: dict[int, list[tuple[bytes, os.stat_result]]] = {}
        self._handles = 0
        self._free_at = 0.0  # when all that was asked for has passed, at a limited rate
        self._lock = threading.Lock()
        self._log = os.open(self._options.log or os.devnull, _APPEND, 0o644)
        self._calls = {
            _INIT: self._init,
            _LOOKUP: self._lookup,
            _GETATTR: self._getattr,
            _READLINK: self._readlink,
            _OPEN: self._open,
            _READ: self._read,
            _RELEASE: self._release,
            _FLUSH: self._flush,
            _OPENDIR: self._opendir,
            _READDIR: self._readdir,
            _RELEASEDIR: self._releasedir,
            _STATFS: self._statfs,
        }
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        self._mount()

    def _mount(self) -> None:
        user, group = os.geteuid(), os.getegid()
        data = f"fd={self._device},rootmode=40000,user_id={user},group_id={group}"
        data += ",allow_other" * self._options.allow_other
        data += ",default_permissions" * self._options.default_permissions
        kind = f"fuse.{self._options.subtype}" if self._options.subtype else "fuse"
        flags = ctypes.c_ulong(_MS_RDONLY | _MS_NOSUID | _MS_NODEV)
        source = os.fsencode(self._options.source)
        if _libc.mount(source, self._mountpoint, kind.encode(), flags, data.encode()):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), os.fsdecode(self._mountpoint))

    def unmount(self) -> None:
        """Abort all waiting requests and unmount."""
        _unmount(self._mountpoint)

    def serve(self) -> None:
        """Answer until the connection ends; any number of threads may call this."""
        while True:
            try:
                request = os.read(self._device, _BUFFER_BYTES)
            except OSError as error:
                if error.errno in {errno.EINTR, errno.ENOENT, errno.EAGAIN}:
                    continue  # ENOENT: the request was interrupted before it was handed out
                return
            _, opcode, unique, node, _, _, thread, _ = _HEADER.unpack_from(request)
            code, answer = 0, b""
            try:
                if opcode == _READ and self._options.log:
                    self._record(thread, node, request[_HEADER.size :])
                found = self._answer(opcode, node, request[_HEADER.size :])
            except OSError as error:
                code = error.errno or errno.EIO
            else:
                if found is None:
                    continue
                answer = found
            head = _ANSWER.pack(_ANSWER.size + len(answer), -code, unique)
            with contextlib.suppress(OSError):  # the caller may be gone
                os.writev(self._device, [head, answer])

    def _answer(self, opcode: int, node: int, body: bytes) -> bytes | None:
        """Return the body of the answer, or None for no answer; raises OSError for an error."""
        if opcode in _NEVER_ANSWERED:
            return None
        call = self._calls.get(opcode)
        if call is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        return call(node, body)

    def _init(self, node: int, body: bytes) -> bytes:
        _, _, read_ahead_bytes, flags = struct.unpack_from("=IIII", body)
        background = self._options.max_background
        return struct.pack(
            "=IIIIHHIIHHI28x",
            7,
            31,
            read_ahead_bytes,
            flags & _WANTED,
            background,
            max(1, background * 3 // 4),  # the congestion threshold: the kernel's default ratio
            _LARGEST_WRITE_BYTES,
            1,
            _LARGEST_READ_BYTES // os.sysconf("SC_PAGE_SIZE"),
            0,
            0,
        )

    def _lookup(self, node: int, body: bytes) -> bytes:
        self._status(node)
        path = self._paths[node] + b"/" + body.rstrip(b"\0")
        status = os.lstat(path)
        key = _key(status)
        with self._lock:
            child = self._nodes.setdefault(key, len(self._nodes) + 1)
            self._keys[child] = key
            self._paths[child] = path
        return struct.pack("=QQQQII", child, 0, _VALID_SECONDS, _VALID_SECONDS, 0, 0) + _attributes(
            status
        )

    def _status(self, node: int) -> os.stat_result:
        """Return a node's attributes; raises ESTALE if another file has taken its path."""
        status = os.lstat(self._paths[node])
        if _key(status) != self._keys[node]:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return status

    def _getattr(self, node: int, body: bytes) -> bytes:
        return struct.pack("=QII", _VALID_SECONDS, 0, 0) + _attributes(self._status(node))

    def _readlink(self, node: int, body: bytes) -> bytes:
        return os.readlink(self._paths[node])

    def _open(self, node: int, body: bytes) -> bytes:
        self._status(node)
        if self._options.fail_open:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        descriptor = os.open(self._paths[node], os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        flags = _FOPEN_KEEP_CACHE * self._options.keep_cache
        flags |= _FOPEN_DIRECT_IO * self._options.direct_io
        return struct.pack("=QII", descriptor, flags, 0)

    def _read(self, node: int, body: bytes) -> bytes | None:
        descriptor, offset, size = struct.unpack_from("=QQI", body)
        options = self._options
        # The kernel asks for whole pages, which may reach beyond the end of the file.
        end = min(offset + size, os.fstat(descriptor).st_size)
        if options.hang_from is not None and end > max(offset, options.hang_from):
            return None
        time.sleep(max(options.delay, self._queued(end - offset)))
        if options.fail_read is not None and offset <= options.fail_read < end:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return os.pread(descriptor, min(size, options.short or size), offset)

    def _queued(self, size: int) -> float:
        """Return in how many seconds so many bytes have passed behind those of other reads."""
        if self._options.rate is None:
            return 0.0
        with self._lock:
            now = time.monotonic()
            self._free_at = max(now, self._free_at) + max(0, size) / self._options.rate
            return self._free_at - now

    def _record(self, thread: int, node: int, body: bytes) -> None:
        # It waits for the answer, or reads ahead and goes on: then it may be gone, and is unknown.
        process = 0
        with contextlib.suppress(OSError), open(f"/proc/{thread}/status", "rb") as status:
            process = next(int(line[5:]) for line in status if line.startswith(b"Tgid:"))
        _, offset, size = struct.unpack_from("=QQI", body)
        name = os.path.relpath(self._paths[node], self._paths[_ROOT_NODE])
        # One write, so that the threads' lines do not mix.
        os.write(self._log, b"%d %d %d %s\n" % (process, offset, size, name))

    def _release(self, node: int, body: bytes) -> bytes:
        os.close(struct.unpack_from("=Q", body)[0])
        return b""

    def _flush(self, node: int, body: bytes) -> bytes | None:
        if self._options.fail_flush:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return None if self._options.hang_flush else b""

    def _opendir(self, node: int, body: bytes) -> bytes:
        folder = self._paths[node]
        entries = [(b".", self._status(node))]
        above = folder if node == _ROOT_NODE else os.path.dirname(folder)
        entries.append((b"..", os.lstat(above)))
        for name in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError):
                entries.append((name, os.lstat(folder + b"/" + name)))
        with self._lock:
            self._handles += 1
            self._folders[self._handles] = entries
            return struct.pack("=QII", self._handles, 0, 0)

    def _readdir(self, node: int, body: bytes) -> bytes:
        handle, offset, size = struct.unpack_from("=QQI", body)
        found = b""
        for number, (name, status) in enumerate(self._folders[handle][offset:], offset + 1):
            kind = stat.S_IFMT(status.st_mode) >> 12
            entry = struct.pack("=QQII", status.st_ino, number, len(name), kind) + name
            entry += b"\0" * (-len(entry) % 8)
            if len(found) + len(entry) > size:
                break
            found += entry
        return found

    def _releasedir(self, node: int, body: bytes) -> bytes:
        del self._folders[struct.unpack_from("=Q", body)[0]]
        return b""

    def _statfs(self, node: int, body: bytes) -> bytes:
        found = os.statvfs(self._paths[_ROOT_NODE])
        return struct.pack(
            "=QQQQQIIII24x",
            found.f_blocks,
            found.f_bfree,
            found.f_bavail,
            found.f_files,
            found.f_ffree,
            found.f_bsize,
            found.f_namemax,
            found.f_frsize,
            0,
        )


def _key(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _attributes(status: os.stat_result) -> bytes:
    times = [status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns]
    billion = 10**9
    return struct.pack(
        "=QQQqqqIIIIIIIIII",
        status.st_ino,
        status.st_size,
        status.st_blocks,
        *(one // billion for one in times),
        *(one % billion for one in times),
        status.st_mode,
        status.st_nlink,
        status.st_uid,
        status.st_gid,
        0,
        status.st_blksize,
        0,
    )


def _unmount(mountpoint: bytes) -> None:
    # MNT_FORCE aborts all waiting requests, and unmounts unless the mount is in use.
    if _libc.umount2(mountpoint, _MNT_FORCE):
        _libc.umount2(mountpoint, _MNT_DETACH)


def main(arguments: Sequence[str]) -> None:
    """Mount, serve, unmount; exit code 77 if this process may not mount."""
    _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDINGS)  # for sigwait, and in all threads
    source, mountpoint, *rest = arguments
    options = Options(rest)
    try:
        server = Server(source, mountpoint, options)
    except OSError as error:
        if error.filename != "/dev/fuse" and error.errno not in {errno.EPERM, errno.ENODEV}:
            raise
        print(f"{error.strerror}: {error.filename}", flush=True)
        sys.exit(_MAY_NOT_MOUNT)

    def serve() -> None:
        try:
            server.serve()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    # Each delayed read holds a thread, and concurrent readers send any number of reads.
    waits = options.delay or options.rate
    threads = max(64, options.max_background + 8) if waits else 4
    targets = [serve] * threads
    # A shell's background jobs get /dev/null, or a terminal that stops readers.
    with contextlib.suppress(OSError):
        if stat.S_ISFIFO(os.fstat(0).st_mode):
            targets.append(watch)
    for target in targets:
        threading.Thread(target=target, daemon=True).start()
    print("mounted", flush=True)
    signal.sigwait(_ENDINGS)
    server.unmount()
    os._exit(0)  # threads may still be in the middle of a delay


class Read(NamedTuple):
    """A read that the kernel asked for."""

    process: int  # that reads, or for which the kernel reads ahead; 0: it was gone
    offset: int
    size_bytes: int  # whole pages: may reach beyond the end of the file
    name: str  # below the mount


def reads(log: str) -> list[Read]:
    """Return what a mount with `--log` was asked for, in order. No name may have a newline."""
    with open(log, encoding="utf-8", errors="surrogateescape") as file:
        split = [line.rstrip("\n").split(" ", 3) for line in file]
    return [Read(int(part[0]), int(part[1]), int(part[2]), part[3]) for part in split]


@contextlib.contextmanager
def mounted(source: str, mountpoint: str, *options: str) -> Iterator[str]:
    """Mount the source folder on `mountpoint`, yield that path, and unmount at the end.

    The options are the program's. At the end calls that still wait in the mount fail. Raises
    OSError if this process may not mount.
    """
    import subprocess  # noqa: PLC0415  the program itself does without

    server = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.passthrough", source, mountpoint, *options],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        said = _line(server.stdout.fileno(), _LONGEST_MOUNT_SECONDS)
        if said != "mounted":
            if said:  # it is about to end
                said += server.communicate(timeout=_LONGEST_MOUNT_SECONDS)[0].decode()
            if server.poll() == _MAY_NOT_MOUNT:
                raise OSError(said.strip())
            raise RuntimeError(f"expected the line 'mounted', found {said!r}")
        yield mountpoint
    finally:
        _unmount(os.fsencode(os.path.abspath(mountpoint)))
        server.kill()
        server.wait()
        server.stdin.close()
        if not server.stdout.closed:
            with server.stdout:
                sys.stderr.write(server.stdout.read().decode(errors="replace"))


def _line(descriptor: int, seconds: float) -> str:
    """Return the first line without its newline, or what came of it by the deadline or EOF."""
    import select  # noqa: PLC0415  the program itself does without

    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    deadline = time.monotonic() + seconds
    line = b""
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            break
        byte = os.read(descriptor, 1)
        if not byte:
            break
        line += byte
    return line.decode(errors="replace").rstrip("\n")


def answered(*command: str) -> str:
    """Return the output of a command that looks at a mount and may hang there.

    Raises TimeoutError if it does not end. It then stays until the mount ends: before that even
    SIGKILL may not end it, and waiting for it would hang as well.
    """
    import subprocess  # noqa: PLC0415  the program itself does without

    process = subprocess.Popen(
        command,
        cwd=_ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=_LONGEST_LOOK_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise TimeoutError(f"no end within {_LONGEST_LOOK_SECONDS} s: {command}") from None
    if process.returncode:
        raise AssertionError(f"exit code {process.returncode}: {output}")
    return output


if __name__ == "__main__":
    main(sys.argv[1:])
