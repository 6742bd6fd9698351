"""Standard streams that never raise: a broken log must not stop the warming."""

import os
import shutil
from typing import TextIO


class Stream:
    """Standard output or error: a terminal, a file, a pipe, a full disk, or closed.

    It has the text file methods that rich calls.
    """

    def __init__(self, stream: TextIO | None) -> None:
        # None if the stream was closed when the process started (`>&-`).
        self._stream = stream
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            # A file name may hold characters that the locale cannot encode.
            reconfigure(errors="backslashreplace")

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
        """The width of this terminal, or of standard output's where it does not tell."""
        try:
            columns = os.get_terminal_size(self.fileno()).columns
        except (OSError, ValueError):
            columns = 0
        return columns or shutil.get_terminal_size().columns

    def fileno(self) -> int:
        """Return the descriptor; raises OSError where there is none."""
        if self._stream is None:
            raise OSError("closed")
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Write and flush what the stream takes, and return the length of the text."""
        if self._stream is not None:
            try:
                self._stream.write(text)
                self._stream.flush()
            except (OSError, ValueError):
                # The reader has exited (`| head`), the disk is full, the terminal hung up.
                # Buffered text would fail again at the next line.
                self._discard()
        return len(text)

    def flush(self) -> None:
        """Do nothing: each write flushes."""

    def _discard(self) -> None:
        """Point the descriptor at /dev/null, as Python's signal documentation recommends."""
        try:
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(null, self.fileno())
            os.close(null)
        except (OSError, ValueError):
            self._stream = None
