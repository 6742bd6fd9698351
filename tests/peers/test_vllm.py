"""vLLM and we choose the same files."""

from collections.abc import Sequence

import pytest

from tests.peers import vllm
from tests.peers.comparison import compared, require_agreement
from tests.peers.conftest import Made


@pytest.mark.parametrize("load_format", vllm.FORMATS)
def test_we_warm_what_vllm_opens_in_its_order(made: Sequence[Made], load_format: str) -> None:
    cases = compared(made, "vllm", load_format, vllm.outcome)
    assert any(case.theirs.refusal is None for case in cases)
    require_agreement(cases)


def test_each_load_format_of_vllm_is_compared_or_not_for_a_reason() -> None:
    assert vllm.known_formats() == sorted((*vllm.FORMATS, *vllm.NOT_COMPARED))


def test_each_model_that_chooses_its_own_files_is_known() -> None:
    assert vllm.modules_that_choose() == vllm.KNOWN_MODULES
