"""JSON in pieces: the same values as json.loads, in memory that does not grow with the text."""

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefetch_cli.checkpoint.scanner import NotJsonError, Scanner, TooLargeError
from tests.bench.run import run as measured
from tests.conftest import MIB

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
DOCUMENTS = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


def pieces(content: bytes, size: int) -> Iterator[bytes]:
    return (content[start : start + size] for start in range(0, len(content), size))


def shallow(value: Any) -> Any:
    """Return what the scanner makes of a value: containers come back empty."""
    if isinstance(value, dict):
        return {}
    return [] if isinstance(value, list) else value


def same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, float) and math.isnan(wanted):
        return isinstance(found, float) and math.isnan(found)
    return type(found) is type(wanted) and bool(found == wanted)


def scanned(content: bytes, size: int = 7) -> Any:
    """Return a document's members, or its value if it is no object."""
    scanner = Scanner(pieces(content, size))
    if not scanner.is_object():
        found = scanner.value()
        scanner.end()
        return found
    members = {key: scanner.value() for key in scanner.members()}
    scanner.end()
    return members


@given(DOCUMENTS, st.integers(1, 40), st.sampled_from([None, 2]), st.booleans())
def test_every_document_is_read_as_by_json_loads(
    document: Any, size: int, indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps(document, indent=indent, ensure_ascii=ascii_only)
    try:
        content = text.encode()
    except UnicodeEncodeError:
        return  # half a surrogate pair, which only an escape can write
    found = scanned(content, size)
    if isinstance(document, dict):
        assert list(found) == list(document)
        assert all(same(found[key], shallow(value)) for key, value in document.items())
    else:
        assert same(found, shallow(document))


@given(st.dictionaries(st.text(), SCALARS | st.just([1, {"a": "b"}])), st.integers(1, 40))
def test_the_values_of_members_are_those_of_json_loads(document: dict[str, Any], size: int) -> None:
    content = json.dumps(document).encode()
    found = list(Scanner(pieces(content, size)).values())
    wanted = [shallow(value) for value in document.values()]
    # Equal strings may come once.
    texts = {value for value in wanted if isinstance(value, str)}
    assert {value for value in found if isinstance(value, str)} == texts
    others = [value for value in wanted if not isinstance(value, str)]
    assert repr([value for value in found if not isinstance(value, str)]) == repr(others)


@given(st.lists(SCALARS | st.just([1, {"a": "b"}]) | st.just({})), st.integers(1, 40))
def test_the_elements_of_an_array_are_those_of_json_loads(document: list[Any], size: int) -> None:
    scanner = Scanner(pieces(json.dumps(document).encode(), size))
    assert scanner.is_array()
    found = [scanner.value() for _ in scanner.elements()]
    scanner.end()
    assert repr(found) == repr([shallow(value) for value in document])


@pytest.mark.parametrize("content", [b"[1 2]", b"[1,]", b"[,]", b"[1", b"[", b"{}", b"[1}"])
def test_an_array_that_is_none_is_refused(content: bytes) -> None:
    scanner = Scanner([content])
    with pytest.raises(NotJsonError):
        [scanner.value() for _ in scanner.elements()]


# Only characters of JSON, so that most texts are almost valid.
@settings(max_examples=500)
@given(st.text(alphabet='[]{}:,"\\ \n0123456789eE+-.truefalsnNaIity\x01\x1f\u00e9', max_size=30))
@example("{}")
@example('{"a":1,}')
@example('{"a":"b","a":"b",}')
@example("[1,]")
@example("01")
@example("1.")
@example('"\\x"')
@example('["\\u00"')
def test_what_json_loads_refuses_is_refused(text: str) -> None:
    content = text.encode()
    try:
        wanted = json.loads(content)
    except ValueError:
        wanted = NotJsonError
    try:
        found = scanned(content)
    except NotJsonError:
        found = NotJsonError
    if wanted is NotJsonError:
        # A string that is skipped may hold invalid escapes.
        assert found is NotJsonError or "\\" in text
    else:
        assert found is not NotJsonError


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "expected a value at its end"),
        (b'{"a":', "expected a value at its end"),
        (b'{"a" 1}', "expected : at character 5"),
        (b"{1:2}", "expected a key at character 1"),
        (b'{"a":1 2}', "expected a comma or } at character 7"),
        (b'{"a":1} 2', "expected the end at character 8"),
        (b'{"a":\xff}', "expected UTF-8: invalid start byte"),
        (b'{"a":nul}', "expected a value near character 8"),
        (b'{"a":"\\x"}', "expected an escape that JSON has"),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_what_is_wrong_is_said(content: bytes, said: str, size: int) -> None:
    with pytest.raises(NotJsonError) as caught:
        scanned(content, size)
    assert str(caught.value) == said


def endless(start: bytes, piece: bytes) -> Iterator[bytes]:
    yield start
    while True:
        yield piece


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"", b" " * MIB),
        (b'{"a":"', b"x" * MIB),
        (b'{"a":[', b"1," * 1000),
        (b'{"a":', b'{"a":' * 1000),
        (b"[", b"[" * 1000),
        (b'{"a":', b"1" * 1000),
        (b"{", b'"a":"b",' * 1000),
        (b"{", b'"a": 1,' * 1000),
    ],
    ids=["blanks", "text", "list", "objects", "lists", "number", "members", "numbers"],
)
def test_an_endless_text_is_refused(start: bytes, piece: bytes) -> None:
    with pytest.raises((TooLargeError, NotJsonError)):
        for _ in Scanner(endless(start, piece)).values():
            pass


# The names of a mixture of experts of which every tensor is quantized.
_TENSOR = "language_model.model.layers.{}.mlp.experts.{}.down_proj.weight_scale_inv"
MOST_BYTES = 100 * MIB  # README, "Security"


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an index of 300,000 tensors and none of its 200 shards."""
    folder = tmp_path_factory.mktemp("honest")
    weight_map = {
        _TENSOR.format(n // 1000, n % 1000): f"model-{n // 1500 + 1:05}-of-00200.safetensors"
        for n in range(300_000)
    }
    document = {"metadata": {"total_size": 10**12}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(document, indent=2))
    return folder


def test_the_largest_honest_index_costs_little_memory(honest: Path) -> None:
    usage = measured([sys.executable, "-m", "prefetch_cli", "--dry-run", str(honest)])
    assert "found 200 files missing or cut short" in usage.stderr
    assert usage.peak_rss_bytes < MOST_BYTES


def test_json_loads_would_cost_more_than_we_promise(honest: Path) -> None:
    """Once this fails, there is no more reason for a scanner of our own."""
    code = "import json, sys; json.load(open(sys.argv[1], 'rb'))"
    usage = measured([sys.executable, "-c", code, str(honest / "model.safetensors.index.json")])
    assert usage.exit_code == 0
    assert usage.peak_rss_bytes > MOST_BYTES


def numbered(member: bytes, count: int) -> bytes:
    return b",".join(member % number for number in range(count))


# One hostile index for each bound, built when its test runs.
HOSTILE: dict[str, Callable[[], bytes]] = {
    "texts": lambda: b'{"weight_map":{"a":[%s]}}' % numbered(b'"%d"', 6_000_000),
    "members": lambda: b'{"weight_map":{%s}}' % numbered(b'"%d":"x"', 4_000_000),
    "shards": lambda: b'{"weight_map":{%s}}' % numbered(b'"":"%d"', 4_000_000),
    "names": lambda: b'{"weight_map":{%s}}' % numbered(b'"":"%%d%s"' % (b"x" * 4000), 12_000),
    "blanks": lambda: b'{"weight_map":%s{"a":"b"}}' % (b" " * (60 * MIB)),
    "wide": lambda: b'{"\xf0\x9f\x8e\x89%s":1}' % (b"x" * (60 * MIB)),
    "metadata": lambda: b'{"metadata":{%s}}' % numbered(b'"%d":1', 4_000_000),
    "deep": lambda: b'{"weight_map":%s' % (b"[" * (60 * MIB)),
    "absent": lambda: b'{"weight_map":{%s}}' % numbered(b'"":"%d.safetensors"', 99_000),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_index_costs_little_memory_and_time(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_bytes(HOSTILE[kind]())
    usage = measured([sys.executable, "-m", "prefetch_cli", "--dry-run", str(folder)])
    assert usage.exit_code == 3
    assert usage.stderr.splitlines()[-1].startswith("prefetch-cli: error: ")
    assert usage.stderr.count("\n") == 1
    assert usage.peak_rss_bytes < MOST_BYTES
    assert usage.cpu_seconds < 20  # usually 1 to 2 s
