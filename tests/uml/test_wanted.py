"""What needs no kernel of `--only parts` and `--only window`: the tables, and what was missed."""

from dataclasses import replace

import pytest

from tests.uml import __main__, parts, window
from tests.uml.parts import STAGES, WHOLE, Load, Part, Reading
from tests.uml.rows import GIB, MIB
from tests.uml.window import ALONE, HEAD, WINDOW, Run


def reading(part: Part, wire_bytes: int = 600 * MIB) -> Reading:
    loads = (Load("slices", 0.5, 0), Load("vllm", 0.7, 0))
    return Reading(part.name, 544 * MIB, wire_bytes, 3.0, 1.0, 0.0, 0, loads)


def of_parts(*readings: Reading) -> parts.Result:
    cold = [(part.name, Load("slices", 40.0, 0)) for part in (WHOLE, *STAGES)]
    return parts.Result(GIB, 1, list(readings), cold, GIB, 1.0, "")


ALL = [reading(part) for part in (WHOLE, *STAGES)]


def test_stages_have_all_layers_together() -> None:
    assert [layer for stage in STAGES for layer in stage.layers] == list(WHOLE.layers)


def test_a_stage_that_reads_its_own_is_no_miss() -> None:
    assert parts.misses(of_parts(*ALL)) == []
    heads, whole, *_, both = parts.table(of_parts(*ALL))
    assert len({len(row) for row in (heads, whole, both)}) == 1
    assert whole[:5] == ["all", "544.0 MiB", "600.0 MiB", "3.00 (3.00 to 3.00)", "40.0 s"]
    assert whole[5:7] == ["0.50 s, 0 bytes", "0.70 s, 0 bytes"]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"own_share": 0.5}, "50.0 % of a layer of its own resident"),
        ({"others_share": 0.5}, "50.0 % of other stages resident"),
        ({"header_bytes": 4096}, "4,096 bytes of headers are not resident"),
        ({"loads": (Load("vllm", 1.0, 5000),)}, "vllm read 5,000 bytes behind it"),
    ],
)
def test_what_a_stage_does_wrong_is_named(what: dict[str, object], said: str) -> None:
    wrong = replace(ALL[1], **what)  # type: ignore[arg-type]
    assert parts.misses(of_parts(wrong)) == [f"--stage 0/2: {said}"]


def run(round_trip_ms: int, way: str, seconds: float, *ranks: float) -> Run:
    return Run(round_trip_ms, way, seconds, ranks or (seconds,), 5.0, 8 * GIB, 3 * GIB, 0, ())


FAST = [
    *(run(10, ALONE, seconds) for seconds in (28, 30, 90)),
    *(run(10, HEAD, seconds) for seconds in (19, 20, 60)),
    *(run(10, WINDOW, seconds) for seconds in (9, 10, 30)),
    run(0, ALONE, 10, 8, 9),
    run(0, HEAD, 10, 8, 9),
    run(0, WINDOW, 10.4, 8.4, 9),
]


def of_window(*runs: Run) -> window.Result:
    return window.Result(8 * GIB, 3 * GIB, 3, list(runs))


def test_medians_count() -> None:
    result = of_window(*FAST)
    assert window.misses(result) == []
    assert result.slower(0, WINDOW) == pytest.approx(1.05)
    rows = window.table(result)
    assert rows[3][1:4] == ["--window auto", "10.0 (9.0 to 30.0)", "3.00 x"]
    assert [row[0] for row in rows[1:]] == ["10 ms", "", "", "0 ms", "", ""]


def test_what_a_window_does_wrong_is_named() -> None:
    *others, _, _, last = FAST
    slow = run(10, WINDOW, 40)
    large = replace(FAST[6], wire_bytes=9 * GIB, peak_bytes=4 * GIB)
    late = replace(last, rank_seconds=(8, 9.9))
    found = window.misses(of_window(*others[:6], slow, large, slow, *FAST[9:11], late))
    assert found == [
        "10 ms: 0.75 x as fast as alone, expected 3 x",
        "10 ms: 0.50 x as fast as --partial, expected 2 x",
        "0 ms: a rank takes 1.10 x as long as alone",
        "10 ms: 1.125 x the checkpoint on the wire",
        "10 ms: 4,294,967,296 bytes, 0 killed",
    ]


def test_the_rates_are_measured_unless_others_are_asked_for() -> None:
    assert __main__.parsed([]).only == ["rates"]
    given = __main__.parsed(["--only", "parts", "--only", "window", "--window-size", "2"])
    assert (given.only, given.window_size) == (["parts", "window"], 2)


def test_the_servers_memory_holds_the_checkpoint() -> None:
    assert 0.8 * window.memory_bytes(8 * GIB) > 8 * GIB
    assert window.limit_bytes(8 * GIB) == 3 * GIB
