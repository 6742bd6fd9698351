"""SGLang and we choose the same files."""

from collections.abc import Sequence

import pytest

from tests.peers import sglang
from tests.peers.comparison import compared, require_agreement
from tests.peers.conftest import Made


@pytest.mark.parametrize("load_format", sglang.FORMATS)
def test_we_warm_what_sglang_opens_in_its_order(made: Sequence[Made], load_format: str) -> None:
    cases = compared(made, "sglang", load_format, sglang.outcome)
    # It takes no directory for a GGUF.
    assert any(case.theirs.refusal is None for case in cases) is (load_format != "gguf")
    require_agreement(cases)


def test_each_load_format_of_sglang_is_compared_or_not_for_a_reason() -> None:
    assert sglang.known_formats() == sorted((*sglang.FORMATS, *sglang.NOT_COMPARED))


def test_each_model_that_chooses_its_own_files_is_known() -> None:
    assert sglang.modules_that_choose() == sglang.KNOWN_MODULES
