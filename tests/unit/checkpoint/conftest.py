"""Files as a user without any rights sees them."""

import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody can enter; pytest's own are closed to other users."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def as_nobody(imports: str, code: str, *arguments: Path) -> str:
    """Return what code prints when a user who owns nothing runs it."""
    if os.geteuid() != 0:
        pytest.skip("only root can become someone else")
    # Root imports: nobody may not be able to read the interpreter's own files.
    drop = "import os, sys\nos.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{imports}\n{drop}{textwrap.dedent(code)}", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
