"""The launchers' programs: where they are, and the Debian packages of those that are missing."""

import os
import shutil
from collections.abc import Mapping
from typing import NoReturn

import pytest

# Some of these are not on every user's PATH.
PLACES = os.pathsep.join((os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"))


def command(name: str) -> str | None:
    """Return the path of a system program, or None if it is not installed."""
    return shutil.which(name, path=PLACES)


def missing_packages(packages: Mapping[str, str]) -> list[str]:
    """Return the packages of missing programs, sorted; takes {program: package}."""
    return sorted({package for name, package in packages.items() if command(name) is None})


def need(packages: Mapping[str, str]) -> None:
    """Skip the test if a program is missing, and name its Debian package."""
    if missing := missing_packages(packages):
        give_up(f"needs Debian's {', '.join(missing)}: apt-get install them")


def give_up(reason: str) -> NoReturn:
    """Skip what cannot run here; in CI, where it must run, fail."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
