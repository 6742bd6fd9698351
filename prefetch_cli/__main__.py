"""The command: `prefetch-cli`, and `python -m prefetch_cli`."""

# Of CPython itself: what `signal` imports takes time, and can be interrupted.
import _signal  # type: ignore[import-not-found]
import gc


def main() -> None:
    """End the process with the exit code of the command; never returns."""
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        try:  # noqa: SIM105 - an import of contextlib takes time
            _let_sigint_end_the_process()
        except OSError:  # a sandbox refuses it
            pass
    # No import leaves garbage: to look for it takes a tenth of the start. A run looks again.
    gc.disable()
    from prefetch_cli.cli import main  # noqa: PLC0415 - see above

    main.main()


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
