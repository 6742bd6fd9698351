"""The `__main__` of prefetch-cli.pyz, which even Python 2 can parse, to say that it is too old."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - nobody has checked it before
    sys.exit(
        "prefetch-cli: error: expected Python 3.10 or newer, found %d.%d; "  # noqa: UP031
        "name another one: python3.12 prefetch-cli.pyz" % sys.version_info[:2]
    )

from pyz import extension

extension.allow()

from prefetch_cli.__main__ import main  # noqa: E402 - after that check

main()
