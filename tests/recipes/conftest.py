"""What the tests of the recipes start from."""

import pytest

from tests.helpers import oracle
from tests.recipes.server import Server


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Server:
    """Both commands, once for all tests of a process."""
    if oracle.oracle_name() != "fincore":
        pytest.skip("needs fincore (util-linux)")
    return Server.built(str(tmp_path_factory.mktemp("recipes") / "server"))


@pytest.fixture
def server(installed: Server) -> Server:
    """Both commands, of which no start has been noted, and a library that is cold."""
    installed.reset()
    return installed
