"""Standard streams to which writing never fails: the warming matters, not the words."""

import os
from typing import TextIO


class Stream:
    """Standard output or error, whatever it is: a terminal, a log, a pipe, full, closed.

    It has the methods of a text file that rich asks for.
    """

    def __init__(self, stream: TextIO | None) -> None:
        # None: closed when the process started (`>&-`).
        self._stream = stream
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            # Names of files may hold what the locale's encoding cannot.
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

    def fileno(self) -> int:
        """Return the descriptor; raises OSError where there is none."""
        if self._stream is None:
            raise OSError("closed")
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Write and flush as much as can be, and return the length of the text."""
        if self._stream is not None:
            try:
                self._stream.write(text)
                self._stream.flush()
            except (OSError, ValueError):
                # A reader that has gone (`| head`), a full device, a terminal that hung up.
                # What is buffered would fail again with the next line.
                self._discard()
        return len(text)

    def flush(self) -> None:
        """Do nothing: every write has been flushed."""

    def _discard(self) -> None:
        """Point the descriptor to nowhere, as the manual of Python's signal module advises."""
        try:
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(null, self.fileno())
            os.close(null)
        except (OSError, ValueError):
            self._stream = None
