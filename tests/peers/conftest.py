"""The directories that all servers and we are shown."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytest

from tests.peers import directories
from tests.peers.directories import Directory


@dataclass(frozen=True)
class Made:
    """A directory on disk."""

    directory: Directory
    path: str


Maker = Callable[[Iterable[Directory], Callable[[int], Directory]], list[Made]]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a failing seed be tried again, and others be tried."""
    group = parser.getgroup("peers")
    group.addoption("--first-seed", type=int, default=0, help="of the generated directories")
    group.addoption("--directories", type=int, default=600, help="how many are generated")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the first test the time that the wheels take to arrive."""
    for item in items:
        item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def make(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """Writes layouts, and the directories of the seeds, to disk."""
    first = request.config.getoption("--first-seed")
    seeds = range(first, first + request.config.getoption("--directories"))

    def write(named: Iterable[Directory], generated: Callable[[int], Directory]) -> list[Made]:
        folder = str(tmp_path_factory.mktemp("made"))
        return [Made(one, one.write(folder)) for one in (*named, *map(generated, seeds))]

    return write


@pytest.fixture(scope="session")
def made(make: Maker) -> list[Made]:
    """The named layouts and the generated directories."""
    return make(directories.named(), directories.generated)
