"""The command: `prefetch-cli`, and `python -m prefetch_cli`."""

# Of CPython itself: what `signal` imports takes time, and can be interrupted.
import _signal  # type: ignore[import-not-found]


def main() -> None:
    """End the process with the exit code of the command; never returns."""
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        # Until the run answers signals itself, one ends the process without a traceback, also in
        # the middle of an import.
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    from prefetch_cli import cli  # noqa: PLC0415 - see above

    cli.main()


if __name__ == "__main__":
    main()
