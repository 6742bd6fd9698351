"""The command: `prefetch-cli`, and `python -m prefetch_cli`."""

# Of CPython itself: what `signal` imports takes time, and can be interrupted.
import _signal  # type: ignore[import-not-found]
import gc
import os
import sys

# What it takes to say that there is no memory, and to start COMMAND. Nothing is written to it, so
# it takes addresses, and no memory.
_RESERVE_BYTES = 4 * 1024 * 1024
_LAST_WORDS = b"prefetch-cli: error: expected more memory, found none; raise the limit\n"


def main() -> None:
    """End the process with the exit code of the command; never returns."""
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        try:  # noqa: SIM105 - an import of contextlib takes time
            _let_sigint_end_the_process()
        except OSError:  # a sandbox refuses it
            pass
    # No import leaves garbage: to look for it takes a tenth of the start. A run looks again.
    gc.disable()
    reserve, pid = b"", os.getpid()
    try:
        reserve = bytes(_RESERVE_BYTES)
        from prefetch_cli.cli import main  # noqa: PLC0415 - see above

        main.main()
    except Exception as error:
        del reserve
        code = _code_without_memory(error, beside=os.getpid() != pid)
        if code is None:
            raise
        os._exit(code)


def _code_without_memory(error: Exception, *, beside: bool) -> int | None:
    """Say that there is no memory and become COMMAND, or return an exit code.

    Returns None where this error has another cause.
    """
    try:
        # Imported where nothing but an error needs them.
        from prefetch_cli.linux.shortage import is_shortage  # noqa: PLC0415
        from prefetch_cli.process import without_memory  # noqa: PLC0415

        return without_memory.end(sys.argv[1:], beside=beside) if is_shortage(error) else None
    except MemoryError:
        os.write(2, _LAST_WORDS)
        return 1


def _let_sigint_end_the_process() -> None:
    """Give SIGINT its default action, until the run answers signals itself.

    So it leaves no traceback, also in the middle of an import. Blocked meanwhile: one that came
    while its handler is changed would be dropped, with a traceback about that.
    """
    before = set()
    try:
        before = _signal.pthread_sigmask(_signal.SIG_BLOCK, {_signal.SIGINT})
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    except KeyboardInterrupt:  # it came before it was blocked
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
        _signal.raise_signal(_signal.SIGINT)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, before)


if __name__ == "__main__":
    main()
