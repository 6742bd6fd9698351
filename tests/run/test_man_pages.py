"""The man pages: well-formed, installed under their names, and true to what the program does."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from prefetch_cli import __version__
from prefetch_cli.base.words import Engine
from prefetch_cli.linux import fstypes
from prefetch_cli.plan.decision import Reason
from prefetch_cli.run import metrics
from tests.helpers.command import ROOT
from tests.helpers.documents import PAGES, blocks, page, plain, section
from tests.run import examples
from tests.run import test_json_contract as contract
from tests.run import test_progress_events as events

HANDWRITTEN = [name for name in PAGES if name != "prefetch-cli.1"]


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(
    "command_line", ["mandoc -T lint", "groff -man -Tutf8 -ww -z"], ids=["mandoc", "groff"]
)
def test_a_page_is_well_formed(command_line: str, name: str) -> None:
    words = command_line.split()
    if not shutil.which(words[0]):
        pytest.skip(f"needs {words[0]}")
    path = os.path.join(ROOT, "man", name)
    done = subprocess.run([*words, path], capture_output=True, check=False, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(
    "command_line",
    ["mandoc -T utf8 -O width=200", "groff -man -Tutf8 -rLL=200n -P-cbou"],
    ids=["mandoc", "groff"],
)
def test_code_of_a_page_can_be_copied_from_the_screen(command_line: str, name: str) -> None:
    words = command_line.split()
    if not shutil.which(words[0]):
        pytest.skip(f"needs {words[0]}")
    path = os.path.join(ROOT, "man", name)
    shown = subprocess.check_output([*words, path], text=True)
    lines = "\n".join(line.strip() for line in re.sub(".\b", "", shown).splitlines())
    for block in blocks(page(name)):
        assert "\n".join(line.strip() for line in block.text.splitlines()) in lines


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_its_title_and_refers_to_the_others(name: str) -> None:
    source = page(name)
    pattern = rf'^\.TH (\S+) (\d) \d{{4}}-\d\d-\d\d "prefetch-cli {__version__}" '
    title = re.search(pattern, source, re.MULTILINE)
    assert title is not None
    assert f"{title[1].lower()}.{title[2]}" == name
    others = {other for other in PAGES if other != name}
    see_also = plain(section(source, "SEE ALSO", ".SH "))
    found = re.findall(r"^\.BR (\S+) \((\d)\),?$", see_also, re.MULTILINE)
    assert others <= {f"{called}.{number}" for called, number in found}
    assert found == sorted(found, key=lambda entry: entry[1])


@pytest.mark.parametrize("name", HANDWRITTEN)
def test_a_flag_is_written_with_minus_signs(name: str) -> None:
    """A plain - may come out as a hyphen, and no shell takes that for a minus."""
    lines = [line for line in page(name).splitlines() if not line.startswith(r".\"")]
    assert not [line for line in lines if re.search(r"(?<!\\)-(?:-|\\-)", line)]


def test_commands_of_the_pages_can_be_given() -> None:
    texts = [block.text for name in HANDWRITTEN for block in blocks(page(name))]
    lines = [line for text in texts for line in examples.command_lines(text)]
    assert len(lines) == 14
    for line in lines:
        examples.assert_can_be_given(line)


# prefetch-cli-json(5)

Types = dict[str, set[str]]  # by the path of each key


@pytest.fixture(scope="module")
def documented() -> dict[str, tuple[str, str]]:
    """The entry of each key: its types, and its text."""
    entry = re.compile(
        r"^\.TP\n\\fB([a-z_.\[\]]+)\\fR \(([^)\n]+)\)\n(.*?)(?=^\.)", re.MULTILINE | re.DOTALL
    )
    source = page("prefetch-cli-json.5")
    parts = (section(source, name, ".SH ") + "\n.SH\n" for name in ("KEYS", "ERRORS"))
    found = entry.findall("".join(parts))
    assert len({key for key, _, _ in found}) == len(found)
    return {key: (types, text) for key, types, text in found}


def schemas() -> Iterator[contract.Schema]:
    """Yield the schema of every kind of document."""
    yield from (contract.PREFETCH, contract.SKIPPED, contract.DRY_RUN, contract.CHECK)
    yield from (contract.EVICT, contract.LIST, contract.VERBOSE, contract.ERROR)
    yield contract.VERIFIED
    of_libraries = contract.libraries(contract.READ, contract.READ_RESULT)
    evicted = contract.libraries(contract.NULL, contract.EVICTION)
    yield contract.document("prefetch", libraries=of_libraries)
    yield contract.document("check", libraries=contract.libraries(contract.NULL, contract.NULL))
    yield contract.document("evict", libraries=evicted)
    listed = contract.libraries(contract.NULL, contract.NULL, contract.NULL)
    yield contract.document("list", libraries=listed)
    yield contract.document("prefetch", keep=contract.KEEP)
    yield contract.document("prefetch", window=contract.WINDOW)


def collect(schema: contract.Schema, path: str, types: Types, words: Types) -> None:
    """Note the types and the allowed words of every key below a schema."""
    for one in schema.get("anyOf", ()):
        collect(one, path, types, words)
    if "enum" in schema:
        types.setdefault(path, set()).add("string")
        words.setdefault(path, set()).update(schema["enum"])
    elif "const" in schema:
        kind = "integer" if isinstance(schema["const"], int) else "string"
        types.setdefault(path, set()).add(kind)
    elif schema.get("type") == "array":
        inner = schema["items"]
        types.setdefault(path, set()).add(f"array of {inner['type']}s")
        collect(inner, f"{path}[]", types if inner["type"] == "object" else {}, words)
        types.pop(f"{path}[]", None)
    elif "type" in schema:
        types.setdefault(path, set()).add(schema["type"])
        for key, inner in schema.get("properties", {}).items():
            collect(inner, f"{path}.{key}".lstrip("."), types, words)


@pytest.fixture(scope="module")
def contracted() -> tuple[Types, Types]:
    """The types and the allowed words of each key, by the contract's schemas."""
    types: Types = {}
    words: Types = {}
    for schema in schemas():
        collect(schema, "", types, words)
    del types[""]
    # The page describes these as like those of the checkpoint, which they have to be.
    parts = ("decision", "share", "result", "residency")
    alike = [key for key in types if key.startswith(tuple(f"libraries.{one}." for one in parts))]
    assert len(alike) > 15
    for key in alike:
        assert types.pop(key) <= types[key.removeprefix("libraries.")]
        words.pop(key, None)
    return types, words


def test_the_page_has_the_keys_and_types_of_the_contract(
    documented: dict[str, tuple[str, str]], contracted: tuple[Types, Types]
) -> None:
    expected = {key: " or ".join(sorted(kinds, key=lambda kind: kind == "null"))
                for key, kinds in contracted[0].items()}  # fmt: skip
    assert {key: types for key, (types, _) in documented.items()} == expected


def test_the_page_has_every_word_that_a_key_may_hold(
    documented: dict[str, tuple[str, str]], contracted: tuple[Types, Types]
) -> None:
    for key, words in contracted[1].items():
        assert words <= {plain(word) for word in re.findall(r"\\fB(.*?)\\fR", documented[key][1])}


def test_the_page_has_no_reason_that_there_is_not(documented: dict[str, tuple[str, str]]) -> None:
    found = {plain(word) for word in re.findall(r"\\fB(.*?)\\fR", documented["decision.reason"][1])}
    assert found - {"prefetch-cli"} == {reason.value for reason in Reason}


def keys(value: Any, path: str = "") -> Iterator[str]:
    """Yield the path of every key in a document."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"{path}.{key}".lstrip(".")
            yield from keys(inner, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            yield from keys(inner, f"{path}[]")


def test_the_keys_of_the_page_are_those_of_real_documents(
    documented: dict[str, tuple[str, str]], checkpoint: str, tmp_path: Path
) -> None:
    save_file({"layers.0.experts.0.w": np.ones(9)}, str(tmp_path / "model.safetensors"))
    part = ("--json", "--list", "--stage", "0/1", "--experts", "0/1", str(tmp_path))
    asked = ("--json", "--verbose", "--also", os.path.join(checkpoint, "config.json"), checkpoint)
    real = {
        key
        for action in (("--evict",), ("--force", "--keep", "1s"), ("--evict",))
        for key in keys(json.loads(examples.run(*action, *asked)))
    }
    real |= set(keys(json.loads(examples.run("--json", "/no/such", code=3))))
    real |= set(keys(json.loads(examples.run(*part))))
    real = {
        key
        for key in real
        if not re.match(r"libraries\.(?:decision|share|result|residency)\.", key)
    }
    only_of_failures = {key for key in documented if ".failed[]." in key}
    only_of_trials = {key for key in documented if key.startswith("forecast.")}
    only_of_verify = {key for key in documented if key.startswith("verification.")}
    only_of_events = {key for key in documented if key.startswith("window.")}
    only = only_of_failures | only_of_trials | only_of_verify | only_of_events
    assert documented.keys() - only == real


def shape(value: Any) -> Any:
    """Return the keys of a JSON value, down to its leaves."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return None


def test_the_example_document_has_the_keys_of_a_real_one(checkpoint: str) -> None:
    examples.run("--evict", checkpoint)
    found = json.loads(examples.run("--force", "--json", checkpoint))
    shown = examples.json_example()
    assert shape(shown) == shape(found)
    assert shown["version"] == __version__
    assert shown["decision"]["reason"] == "forced"
    assert shown["residency"]["after_bytes"] == shown["checkpoint"]["total_bytes"]


def test_the_example_error_is_what_the_program_says() -> None:
    _, example = blocks(page("prefetch-cli-json.5"))
    line, _, shown = example.text.partition("\n")
    (arguments,) = examples.command_lines(line)
    assert json.loads(examples.run(*arguments.split(), code=3)) == json.loads(shown)


# prefetch-cli-caching(7)


def test_the_page_names_each_type_of_file_system() -> None:
    text = section(page("prefetch-cli-caching.7"), "FILE SYSTEMS", ".SH ")
    network, fuse, memory = (
        set(map(plain, re.findall(r"\\fB(.*?)\\fR", entry)))
        for entry in re.findall(
            r"^\.B (?:Network|FUSE|In memory): [^\n]*\n(.*?)(?=^\.TP)",
            text,
            re.MULTILINE | re.DOTALL,
        )
    )
    assert network == fstypes.NETWORK_TYPES
    assert fuse - {"fuse", "fuseblk"} == fstypes.LOCAL_FUSE
    assert memory - {"dax"} == fstypes.IN_MEMORY_TYPES


def test_the_page_describes_each_engine() -> None:
    text = section(page("prefetch-cli-caching.7"), "Engines", ".SS ")
    described = re.findall(r"^\.TP\n\.B (\S+)$", text, re.MULTILINE)
    assert sorted(described) == sorted(engine.value for engine in Engine)


def test_outputs_of_the_page_have_the_lines_of_real_ones(checkpoint: str) -> None:
    shown = [block.text for block in blocks(page("prefetch-cli-caching.7")) if "$" in block.text]
    assert len(shown) == 3
    for output in shown:
        examples.assert_has_the_lines_of_a_real_one(output, checkpoint)


# prefetch-cli-json(5), the other two outputs


def test_the_page_has_the_keys_and_types_of_each_object_of_progress() -> None:
    text = section(page("prefetch-cli-json.5"), "PROGRESS", ".SH ")
    shown = re.findall(r"^\\fB([a-z_.]+)\\fR \(([^)\n]+)\)$", text, re.MULTILINE)
    types: Types = {}
    words: Types = {}
    for schema in (events.PROGRESS, events.MESSAGE):
        collect(schema, "", types, words)
    del types[""]
    expected = {key: " or ".join(sorted(kinds, key=lambda kind: kind == "null"))
                for key, kinds in types.items()}  # fmt: skip
    assert dict(shown) == expected
    assert all(rf"\fB{word}\fR" in text for word in words["event"])


def test_the_page_has_each_metric() -> None:
    text = section(page("prefetch-cli-json.5"), "METRICS", ".SH ")
    shown = re.findall(r"^\.TP\n\\fBprefetch_cli_([a-z_]+)\\fR$", text, re.MULTILINE)
    assert shown == list(metrics.HELP)
