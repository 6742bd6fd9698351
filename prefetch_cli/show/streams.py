"""Standard streams that never raise: a broken log must not stop the warming."""

import io
import os
import select
import shutil
from contextlib import suppress
from typing import TextIO

from prefetch_cli.linux.files import close

_COLUMNS = 80  # of a terminal that does not tell


class Stream:
    """Standard output or error: a terminal, a file, a pipe, a full disk, or closed.

    It has the text file methods that rich calls.
    """

    def __init__(self, stream: TextIO | None) -> None:
        # None if the stream was closed when the process started (`>&-`).
        self._stream = stream
        self._is_memory = _is_memory(stream)

    @property
    def encoding(self) -> str:
        """The encoding that text is written in."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Whether this is a terminal."""
        try:
            return self._stream is not None and self._stream.isatty()
        except (OSError, ValueError):
            return False

    @property
    def columns(self) -> int:
        """The width of this terminal, or of standard output's where it does not tell.

        $COLUMNS overrides both. A terminal that says 0 does not tell.
        """
        columns = 0
        if not os.environ.get("COLUMNS"):
            with suppress(OSError, ValueError):
                columns = os.get_terminal_size(self.fileno()).columns
        # Before Python 3.11, this says 0 of such a terminal.
        return columns or shutil.get_terminal_size().columns or _COLUMNS

    def fileno(self) -> int:
        """Return the descriptor; raises OSError where there is none."""
        if self._stream is None:
            raise OSError("closed")
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Write what the stream takes, and return the length of the text."""
        if self._stream is not None:
            try:
                if self._is_memory:
                    self._stream.write(text)
                else:
                    self._put(text.encode(self.encoding, "backslashreplace"))
            except (OSError, ValueError):
                # The reader has exited (`| head`), the disk is full, the terminal hung up.
                self._discard()
        return len(text)

    def write_bytes(self, content: bytes) -> None:
        """Write bytes as they are, as `write` does text: names may be in no encoding."""
        if self._stream is not None:
            try:
                self._put(content)
            except (OSError, ValueError):
                self._discard()

    def _put(self, content: bytes) -> None:
        """Write all of it, however long its reader takes.

        Whoever started us may have made the pipe non-blocking for itself, and so for us. Python's
        own streams lose what such a pipe does not take at once.
        """
        left = memoryview(content)
        while left:
            try:
                left = left[os.write(self.fileno(), left) :]
            except BlockingIOError:
                poll = select.poll()
                poll.register(self.fileno(), select.POLLOUT)
                poll.poll()

    def flush(self) -> None:
        """Do nothing: nothing is kept back."""

    def _discard(self) -> None:
        """Point the descriptor at /dev/null, as Python's signal documentation recommends."""
        try:
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(null, self.fileno())
            close(null)
        except (OSError, ValueError):
            self._stream = None


def _is_memory(stream: TextIO | None) -> bool:
    """Whether what is written stays in this process."""
    try:
        if stream is not None:
            stream.fileno()
    except io.UnsupportedOperation:
        return True
    except (OSError, ValueError):
        return False  # it is closed
    return False
