"""The rows of the table are of differences that there are."""

from pathlib import Path

import pytest

from tests.peers import comparison, directories, sglang, transformers, vllm
from tests.peers.conftest import Made
from tests.peers.differences import DIFFERENCES, Difference, row_of

_PEERS = {
    "vllm": vllm.outcome,
    "sglang": sglang.outcome,
    "transformers": transformers.outcome,
}


@pytest.mark.parametrize("row", DIFFERENCES, ids=lambda row: row.name)
def test_a_row_has_an_example_in_which_we_differ(tmp_path: Path, row: Difference) -> None:
    server, load_format, name = row.example
    (layout,) = [one for one in directories.named() if one.name == name]
    made = Made(layout, layout.write(str(tmp_path)))
    (case,) = comparison.compared([made], server, load_format, _PEERS[server])
    assert not case.ours.agrees_with(case.theirs)
    assert row_of(case) is row
    assert row.warning is None or any(row.warning in text for text in case.ours.warnings)
