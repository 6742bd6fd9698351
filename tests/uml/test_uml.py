"""What needs no kernel: the choice of rows, the configuration, the figures of the table."""

import pytest

from tests.uml import __main__, contest, kernel, rows
from tests.uml.contest import LIMIT, Result
from tests.uml.rows import GIB, USUAL, Row
from tests.vm.bench.contest import AUTO, VLLM, Standing


def standing(name: str, rate: float, cpu_seconds_per_gb: float) -> Standing:
    return Standing(name, 5, rate, rate - 1, rate + 1, 1.0, cpu_seconds_per_gb, "")


def test_the_usual_rows_show_each_value() -> None:
    assert {row.round_trip_ms for row in USUAL} == set(rows.ROUND_TRIPS_MS)
    assert {row.files for row in USUAL} == set(rows.FILES)
    assert {row.mtu for row in USUAL} == set(rows.MTUS)
    assert {row.buffers for row in USUAL} == set(rows.BUFFERS)
    assert {row.nconnect for row in USUAL} == set(rows.NCONNECTS)
    assert {row.version for row in USUAL} == set(rows.VERSIONS)
    assert {row.size_bytes for row in USUAL} <= {size * GIB for size in rows.SIZES_GIB}
    assert __main__.parsed([]).rows == list(USUAL)
    assert len({str(row) for row in USUAL}) == len(USUAL)


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (["--round-trip", "10"], 1),
        (["--round-trip", "10", "--round-trip", "50", "--files", "1", "--files", "4"], 4),
        (["--all"], 4 * 3 * 2 * 2 * 2 * 3 * 2),
        (["--all", "--mtu", "1500"], 4 * 3 * 2 * 2 * 3 * 2),
        (["--quick"], 2),
    ],
)
def test_options_multiply(words: list[str], count: int) -> None:
    assert len(__main__.parsed(words).rows) == count


def test_a_choice_that_is_not_there_is_refused() -> None:
    for words in (["--round-trip", "3"], ["--rounds", "0"]):
        with pytest.raises(SystemExit):
            __main__.parsed(words)


def test_those_that_wait_get_less_the_further_the_server_is() -> None:
    assert Row(0).small_bytes == Row(1).small_bytes == GIB
    assert Row(50).small_bytes < Row(10).small_bytes < GIB


def test_a_configuration_that_lacks_an_option_is_found() -> None:
    config = "".join(f"CONFIG_{name}=y\n" for name in kernel.WANTED)
    assert kernel.lacks(config) == []
    assert kernel.lacks(config.replace("CONFIG_NFSD=y", "CONFIG_NFSD=m")) == ["NFSD"]


def test_the_table_compares_with_vllm_and_with_the_limit() -> None:
    standings = [standing(AUTO, 300, 1.5), standing(VLLM, 100, 2.5), standing(LIMIT, 400, 1.0)]
    result = Result(Row(10, 4), standings)
    assert result.rate_ratio(standings[0]) == 3
    assert result.own_cpu_seconds_per_gb(standings[0]) == 0.5
    _, ours, *others = contest.table([result])
    assert ours[:6] == [
        "10 ms, 1 GiB in 4 files",
        AUTO,
        "300 (299 to 301)",
        "3.00",
        "1.50",
        "+0.50",
    ]
    assert [row[0] for row in others] == ["", ""]
