"""The launchers' programs: where they are, and which Debian package has one that is not here."""

import os
import shutil
from collections.abc import Mapping
from typing import NoReturn

import pytest

# Not on the PATH of every user.
PLACES = os.pathsep.join((os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"))


def command(name: str) -> str | None:
    """Return the path of a program of the system, or None where it is not installed."""
    return shutil.which(name, path=PLACES)


def missing_packages(packages: Mapping[str, str]) -> list[str]:
    """Return the packages whose programs are not here: the values of {program: package}."""
    return sorted({package for name, package in packages.items() if command(name) is None})


def need(packages: Mapping[str, str]) -> None:
    """Skip the test where one of these programs is not here, and name its Debian package."""
    if missing := missing_packages(packages):
        give_up(f"needs Debian's {', '.join(missing)}: apt-get install them")


def give_up(reason: str) -> NoReturn:
    """Skip what cannot be run here; where CI has to run it, fail."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
