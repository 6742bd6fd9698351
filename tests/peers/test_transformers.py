"""transformers and we choose the same files."""

from collections.abc import Sequence

import pytest

from tests.peers import transformers
from tests.peers.comparison import compared, require_agreement
from tests.peers.conftest import Made


@pytest.mark.parametrize("load_format", transformers.FORMATS)
def test_we_warm_what_transformers_opens(made: Sequence[Made], load_format: str) -> None:
    cases = compared(made, "transformers", load_format, transformers.outcome)
    assert any(case.theirs.refusal is None for case in cases)
    require_agreement(cases)
