"""The command with one kind of part more: a draft model, read behind the checkpoint.

`DRAFT=PATH python -m tests.run.third_part ...`: all that a new kind takes is this `yield`, and its
words.
"""

import os
from collections.abc import Iterator, Mapping

from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.stop import Stop
from prefetch_cli.checkpoint.request import Reference
from prefetch_cli.checkpoint.resolve import resolve
from prefetch_cli.cli import main
from prefetch_cli.run import parts
from prefetch_cli.run.options import Options
from prefetch_cli.run.parts import Kind, Part, asked

DRAFT = Kind("draft", names_key="drafts")


def asked_with_draft(
    options: Options, environ: Mapping[str, str], monitor: Monitor, stop: Stop
) -> Iterator[Part]:
    yield from asked(options, environ, monitor, stop)
    request = options.request._replace(references=(Reference(environ["DRAFT"]),))
    draft = resolve(request, environ, monitor, options.threads.first)
    yield Part(DRAFT, lambda _threads: draft, options.overrule)


if __name__ == "__main__":
    parts.asked = asked_with_draft
    assert "DRAFT" in os.environ
    main.main()
