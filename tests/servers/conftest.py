"""The servers' environment, and the models that all tests share."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.bench.environment import EnvironmentFailureError
from tests.launchers import programs
from tests.servers import environment

_LONGEST_SECONDS = 300  # also of an installation


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give these tests more time."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(_LONGEST_SECONDS))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of all models, one folder for each layout."""
    programs.need({"strace": "strace", "fincore": "util-linux-extra"})
    try:
        environment.make()
    except EnvironmentFailureError as error:
        programs.give_up(f"needs the servers, which cannot be installed: {error}")
    folder = tmp_path_factory.mktemp("models")
    maker = os.path.join(environment.HERE, "models.py")
    subprocess.run(
        [environment.PYTHON, maker, folder],
        env=environment.variables(),
        capture_output=True,
        check=True,
    )
    return os.path.realpath(folder)
