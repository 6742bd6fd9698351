"""Fixtures of the recipes: both commands, installed and reset."""

import pytest

from tests.helpers import oracle
from tests.recipes.server import Server


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Server:
    """Both commands, built once per test process."""
    if oracle.oracle_name() != "fincore":
        pytest.skip("needs fincore (util-linux)")
    return Server.built(str(tmp_path_factory.mktemp("recipes") / "server"))


@pytest.fixture
def server(installed: Server) -> Server:
    """Both commands, with no start noted yet and a cold library."""
    installed.reset()
    return installed
