"""Which names a loader reads, format by format, and what an index may contain."""

import fnmatch
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.words import LoadFormat, Server
from prefetch_cli.checkpoint import gguf, layouts
from prefetch_cli.checkpoint.index import Index, parse_index
from prefetch_cli.checkpoint.names import natural_key
from prefetch_cli.checkpoint.selection import (
    Filters,
    Selection,
    select,
    select_by_index,
    side_files,
)
from prefetch_cli.checkpoint.servers import rules_of

HF_INDEX = "model.safetensors.index.json"
BIN_INDEX = "pytorch_model.bin.index.json"
MISTRAL_INDEX = "consolidated.safetensors.index.json"
SELECTING = [one for one in LoadFormat if one is not LoadFormat.ALL]  # that takes every file


def shards(count: int, base: str = "model-", suffix: str = ".safetensors") -> list[str]:
    return [f"{base}{number:05d}-of-{count:05d}{suffix}" for number in range(1, count + 1)]


def chosen(
    names: Sequence[str],
    load_format: LoadFormat = LoadFormat.AUTO,
    indexes: dict[str, Sequence[str] | None] | None = None,
    *,
    filters: Filters = Filters(),  # noqa: B008 - frozen
    component: bool = False,
    server: Server = Server.VLLM,
) -> Selection:
    """Return the selection for a folder with these names and indexes (None: unusable)."""
    indexes = indexes or {}

    def read_index(name: str) -> Index | None:
        named = indexes[name]
        return None if named is None else Index(frozenset(named), None)

    names = sorted({*names, *indexes})
    return select(
        names, load_format, rules_of(server), filters.want, read_index, component=component
    )


def weights(*arguments: object, **options: object) -> list[str]:
    return list(chosen(*arguments, **options).weights)  # type: ignore[arg-type]


# Formats


@pytest.mark.parametrize(
    ("names", "load_format", "found"),
    [
        (["model.safetensors"], LoadFormat.HF, ["model.safetensors"]),
        (["model.safetensors", "pytorch_model.bin", "m.pt"], LoadFormat.HF, ["model.safetensors"]),
        (["pytorch_model.bin", "m.pt"], LoadFormat.HF, ["pytorch_model.bin"]),
        (["m.pt", "m.pth"], LoadFormat.HF, ["m.pt"]),
        (["consolidated.safetensors", "model.safetensors"], LoadFormat.MISTRAL, None),
        (["m.gguf"], LoadFormat.GGUF, ["m.gguf"]),
        (["m.gguf", "model.safetensors"], LoadFormat.HF, ["model.safetensors"]),
        (["m.gguf", "m.pt"], LoadFormat.HF, ["m.pt"]),
        (["m.pth", "config.json"], LoadFormat.HF, []),
        ([], LoadFormat.HF, []),
    ],
)
def test_auto_takes_the_first_format_that_is_there(
    names: list[str], load_format: LoadFormat, found: list[str] | None
) -> None:
    selected = chosen(names)
    assert selected.load_format is load_format
    assert list(selected.weights) == (names[:1] if found is None else found)


@pytest.mark.parametrize(
    ("load_format", "found"),
    [
        (LoadFormat.AUTO, ["consolidated.safetensors"]),
        (LoadFormat.HF, ["consolidated.safetensors", "model.safetensors"]),
        (LoadFormat.SAFETENSORS, ["consolidated.safetensors", "model.safetensors"]),
        (LoadFormat.MISTRAL, ["consolidated.safetensors"]),
        (LoadFormat.PT, ["a.pt"]),
        (LoadFormat.NPCACHE, ["pytorch_model.bin"]),
        (LoadFormat.GGUF, ["m.gguf"]),
    ],
)
def test_each_format_takes_its_own(load_format: LoadFormat, found: list[str]) -> None:
    names = [
        *("consolidated.safetensors", "model.safetensors", "pytorch_model.bin", "a.pt", "a.pth"),
        *("m.gguf", "config.json", "README.md"),
    ]
    assert weights(names, load_format) == found


@pytest.mark.parametrize("load_format", SELECTING)
def test_what_a_training_loop_leaves_is_no_weight(load_format: LoadFormat) -> None:
    names = [
        *("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt"),
        *("global_step_optimizer.pt", "rank0_optimizer.bin"),
    ]
    assert weights(names, load_format) == []


@pytest.mark.parametrize("load_format", SELECTING)
def test_hidden_names_do_not_count(load_format: LoadFormat) -> None:
    hidden = ["._model.safetensors", ".m.bin", "._m.gguf", ".m.pt", "._consolidated.safetensors"]
    assert weights(hidden, load_format) == []
    assert side_files([".gitattributes", "._config.json", "config.json"]) == ["config.json"]


# Indexes


@pytest.mark.parametrize("load_format", [LoadFormat.AUTO, LoadFormat.HF, LoadFormat.SAFETENSORS])
def test_only_the_safetensors_of_the_index_count(load_format: LoadFormat) -> None:
    named = shards(3)
    names = [*named, "adapter.safetensors", "model.safetensors"]
    selected = chosen(names, load_format, {HF_INDEX: named})
    assert list(selected.weights) == named
    assert selected.index == Index(frozenset(named), None)


def test_the_index_of_mistral_is_its_own() -> None:
    named = shards(2, "consolidated-")
    names = [*named, *shards(2), "consolidated-old.safetensors"]
    indexes: dict[str, Sequence[str] | None] = {HF_INDEX: shards(2), MISTRAL_INDEX: named}
    assert weights(names, LoadFormat.AUTO, indexes) == named
    assert weights(names, LoadFormat.HF, indexes) == shards(2)


@pytest.mark.parametrize(
    "names", [shards(2), ["pytorch_model.bin"], ["m.pt"], ["m.gguf"]], ids=lambda names: names[0]
)
def test_the_index_of_weights_that_were_not_downloaded_does_not_matter(names: list[str]) -> None:
    assert weights(names, LoadFormat.AUTO, {MISTRAL_INDEX: shards(3, "consolidated-")}) == names


@pytest.mark.parametrize("names", [["pytorch_model.bin"], ["m.pt"], ["m.gguf"]])
def test_other_weights_are_read_where_the_safetensors_of_an_index_are_not_there(
    names: list[str],
) -> None:
    assert weights(names, LoadFormat.AUTO, {HF_INDEX: shards(2)}) == names


@pytest.mark.parametrize(
    ("index", "load_format"),
    [
        (HF_INDEX, LoadFormat.HF),
        (BIN_INDEX, LoadFormat.HF),
        (MISTRAL_INDEX, LoadFormat.MISTRAL),
    ],
)
def test_an_index_alone_names_what_is_missing(index: str, load_format: LoadFormat) -> None:
    named = shards(2, "consolidated-")
    selected = chosen(["config.json"], LoadFormat.AUTO, {index: named})
    assert selected.load_format is load_format
    assert list(selected.weights) == named


def test_an_index_may_lead_into_folders() -> None:
    # vLLM sorts by file name.
    named = ["b/part-1.safetensors", "a/part-2.safetensors", "c/part-10.safetensors"]
    assert weights([], LoadFormat.AUTO, {HF_INDEX: named}) == named
    assert weights(["config.json"], LoadFormat.AUTO, {HF_INDEX: named}) == named
    # vLLM looks at that index only where the folder itself holds safetensors.
    assert weights(["m.bin", "m.gguf"], LoadFormat.AUTO, {HF_INDEX: named}) == ["m.bin"]


def test_all_bin_files_count_beside_their_index() -> None:
    named = shards(3, "pytorch_model-", ".bin")
    found = weights([*named[:2], "extra.bin"], LoadFormat.HF, {BIN_INDEX: named})
    assert found == ["extra.bin", *named]


def test_without_a_usable_index_the_names_decide() -> None:
    assert weights(shards(4)[1:2], LoadFormat.AUTO, {HF_INDEX: None}) == shards(4)
    assert weights(["model.safetensors"], LoadFormat.AUTO, {HF_INDEX: None}) == [
        "model.safetensors"
    ]


def test_an_index_is_read_once() -> None:
    read = []

    def read_index(name: str) -> Index:
        read.append(name)
        return Index(frozenset(["a/x.safetensors"]), None)

    rules = rules_of(Server.VLLM)
    names = [HF_INDEX, "m.json"]
    select(names, LoadFormat.AUTO, rules, lambda name: True, read_index, component=False)
    assert read == [HF_INDEX]


def test_an_index_file_decides_alone() -> None:
    index = Index(frozenset(shards(12)), 7)
    wanted = Filters(exclude=("*-00002-*",)).want
    selected = select_by_index("any.index.json", index, rules_of(Server.VLLM), wanted)
    assert selected == Selection(LoadFormat.HF, (shards(12)[0], *shards(12)[2:]), index)
    assert (
        select_by_index(MISTRAL_INDEX, index, rules_of(Server.VLLM), wanted).load_format
        is LoadFormat.MISTRAL
    )
    assert (
        select_by_index(HF_INDEX, index, rules_of(Server.VLLM), wanted).load_format is LoadFormat.HF
    )


# Numbered names


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (shards(4), []),
        ([shards(4)[0], shards(4)[2]], [shards(4)[1], shards(4)[3]]),
        ([f"model-0000{number}-of-00004.safetensors" for number in (0, 2)], None),
        # As DeepSeek and Kimi number their shards.
        (
            ["model-00002-of-000003.safetensors", "model-00003-of-000003.safetensors"],
            ["model-00001-of-000003.safetensors"],
        ),
        ([f"model-{number}-of-12.safetensors" for number in range(1, 13)], []),
        (
            [f"model-{number}-of-12.safetensors" for number in range(2, 12)],
            ["model-1-of-12.safetensors", "model-12-of-12.safetensors"],
        ),
        ([f"model-{number}-of-12.safetensors" for number in range(10, 13)], None),
        (
            [f"model-{number}-of-12.safetensors" for number in (10, 0, *range(2, 10))],
            ["model-1-of-12.safetensors", "model-11-of-12.safetensors"],
        ),
        (
            [*shards(2), *shards(3, "other-")[1:]],
            ["other-00001-of-00003.safetensors"],
        ),
        (
            [f"model-0000{number}-of-00003.fp16.safetensors" for number in (2, 3)],
            ["model-00001-of-00003.fp16.safetensors"],
        ),
        (["model-00001-of-00001.safetensors"], []),
        ([f"model-0000{number}-of-00004.safetensors" for number in (5, 6)], shards(4)),
        (["model-00001-of-00000.safetensors"], []),
        (["best-of.safetensors", "v2.safetensors"], []),
    ],
)
def test_numbers_tell_what_is_missing(names: list[str], missing: list[str] | None) -> None:
    found = set(weights(names)) - set(names)
    if missing is None:  # the rest of the set, zero- or one-based
        total = int(re.split(r"[-.]", names[0])[3])
        assert len(found) == total - len(names)
        first = 0 if "00000" in names[0] else 1
        assert {int(name.split("-")[1]) for name in {*found, *names}} == {
            *range(first, first + total)
        }
    else:
        assert found == set(missing)


def test_a_hostile_number_does_not_make_a_billion_names() -> None:
    assert len(weights(["m-000000001-of-999999999.gguf"])) == 10_001
    many = [f"{base}-{number}-of-900000000.safetensors" for base in "ab" for number in (1, 2)]
    assert len(weights(many)) == 10_004
    lone = ["a-1-of-900000000.safetensors", "b-1-of-900000000.safetensors"]
    assert weights(lone) == lone


@given(
    st.integers(1, 40), st.data(), st.sampled_from([1, 2, 5]), st.sampled_from(["", ".fp16", "\n"])
)
def test_any_part_of_a_set_gives_the_set(
    total: int, data: st.DataObject, width: int, middle: str
) -> None:
    whole = [f"m-{n:0{width}}-of-{total:0{width}}{middle}.gguf" for n in range(1, total + 1)]
    part = data.draw(st.sets(st.sampled_from(whole), min_size=1))
    if width == 2 and not any(name.startswith("m-0") for name in part):
        return  # `m-10-of-12` does not tell whether `m-1` or `m-01` is missing
    assert weights(sorted(part)) == whole
    assert gguf.parts(min(part)) == whole


# Order


def vllm_key(path: str) -> list[int | str]:
    return [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", os.path.basename(path))]


NAMES = st.text(alphabet="ab-./0129", min_size=1, max_size=12).filter(lambda name: name[-1] != "/")


@given(st.lists(NAMES, unique_by=lambda name: str(vllm_key(name))))
def test_the_order_is_that_of_vllm(names: list[str]) -> None:
    assert sorted(names, key=natural_key) == sorted(names, key=vllm_key)


@given(st.lists(st.text()))
def test_any_names_have_one_order(names: list[str]) -> None:
    backwards = names[::-1]
    assert sorted(names, key=natural_key) == sorted(backwards, key=natural_key)


def test_numbers_of_any_length_have_an_order() -> None:
    names = ["m-" + "9" * 5000, "m-1" + "0" * 5000, "m-2"]
    assert sorted(names, key=natural_key) == [names[2], names[0], names[1]]


def test_weights_come_in_natural_order() -> None:
    names = ["model-10.safetensors", "model-9.safetensors", "model-2.safetensors", "a.safetensors"]
    assert weights(names) == [names[3], names[2], names[1], names[0]]


# Filters


def test_what_is_filtered_out_is_not_missed() -> None:
    names = shards(4)[:2]
    for indexes in ({}, {HF_INDEX: shards(4)}):
        included = Filters(include=("*-00001-*", "*-00003-*"))
        assert weights(names, LoadFormat.AUTO, indexes, filters=included) == shards(4)[::2]
        excluded = Filters(exclude=("*-0000[34]-*",))
        assert weights(names, LoadFormat.AUTO, indexes, filters=excluded) == names
        both = Filters(include=("*",), exclude=("*-00004-*",))
        assert weights(names, LoadFormat.AUTO, indexes, filters=both) == shards(4)[:3]


def test_filters_choose_among_formats() -> None:
    names = ["consolidated.safetensors", "model.safetensors", "pytorch_model.bin", "m.gguf"]
    index: dict[str, Sequence[str] | None] = {MISTRAL_INDEX: ["consolidated.safetensors"]}
    for excluded, load_format, found in [
        ("consolidated*", LoadFormat.HF, ["model.safetensors"]),
        ("*.safetensors", LoadFormat.HF, ["pytorch_model.bin"]),
        ("[cmp]*[ns]", LoadFormat.GGUF, ["m.gguf"]),
    ]:
        selected = chosen(names, LoadFormat.AUTO, index, filters=Filters(exclude=(excluded,)))
        assert (selected.load_format, list(selected.weights)) == (load_format, found)


@given(
    st.text(alphabet="ab*?[]/\n", max_size=6),
    st.lists(st.text(alphabet="ab*?/\n", max_size=4), max_size=3),
    st.lists(st.text(alphabet="ab*?/\n", max_size=4), max_size=3),
)
def test_exclusion_wins_over_inclusion(name: str, include: list[str], exclude: list[str]) -> None:
    wanted = Filters(tuple(include), tuple(exclude)).want(name)
    inside = not include or any(fnmatch.fnmatchcase(name, glob) for glob in include)
    outside = any(fnmatch.fnmatchcase(name, glob) for glob in exclude)
    assert wanted == (inside and not outside)


# Components


def test_variants_count_only_where_there_is_nothing_else() -> None:
    plain, variant = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.{}.safetensors"
    variants = [variant.format("fp16"), variant.format("non_ema")]
    assert weights([plain, *variants], component=True) == [plain]
    assert weights(variants, component=True) == variants
    # diffusers prefers the plain weights, whatever their format.
    assert weights(["pytorch_model.bin", "model.fp16.safetensors"], component=True) == [
        "pytorch_model.bin"
    ]
    # A whole checkpoint has no variants: `x.fp16.safetensors` is just a name.
    assert weights([plain, *variants]) == sorted([plain, *variants])


@pytest.mark.parametrize(
    "variant",
    [
        "model.fp16.safetensors",
        "model.fp16-00001-of-00002.safetensors",
        "model-00001-of-00002.fp16.safetensors",
        "pytorch_model.bf16.bin",
        "diffusion_pytorch_model.non_ema.bin",
    ],
)
def test_the_names_of_variants(variant: str) -> None:
    assert variant not in weights(["pytorch_model.bin", variant], component=True)


def test_the_index_of_a_component_may_have_any_name() -> None:
    named = shards(2, "diffusion_pytorch_model-")
    index = "diffusion_pytorch_model.safetensors.index.json"
    variant = "diffusion_pytorch_model.fp16.safetensors.index.json"
    other = "other.safetensors.index.json"
    assert weights(["old.safetensors"], component=True, indexes={index: named}) == named
    assert weights(["old.safetensors"], indexes={index: named}) == ["old.safetensors"]
    assert weights([], component=True, indexes={index: named, variant: ["x.safetensors"]}) == named
    # diffusers' own name decides; of several others, none is certain to count.
    several = {index: named, other: ["x.safetensors"]}
    assert weights(["a.safetensors"], component=True, indexes=several) == named
    ambiguous = {"b" + other: named, other: named}
    assert weights(["a.safetensors"], component=True, indexes=ambiguous) == ["a.safetensors"]


def test_a_component_has_no_layout_of_a_whole_checkpoint() -> None:
    selected = chosen(["consolidated.safetensors", "m.safetensors"], component=True)
    assert selected.load_format is LoadFormat.HF
    assert chosen(["m.gguf"], component=True).weights == ()
    assert weights(["m.gguf"], LoadFormat.GGUF, component=True) == ["m.gguf"]


# Config and tokenizer files


def test_config_and_tokenizer_files() -> None:
    wanted = [
        *("chat_template.jinja", "config.json", "merges.txt", "modeling_x.py", "qwen.tiktoken"),
        *("spiece.model", "tekken.json", "tokenizer", "tokenizer.json", "tokenizer.model.v3"),
        *("tokenizer_config.json", "vocab-2.txt", "vocab-10.txt"),
    ]
    others = ["README.md", "LICENSE", "model.safetensors", "tokenizer.bin", "a.onnx", "x.py.orig"]
    assert side_files([*reversed(wanted), *others]) == wanted


# Contents of an index


def index_of(document: object) -> Index:
    return parse_index("/m/x.index.json", [json.dumps(document).encode()])


def refusal(content: bytes) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        parse_index("/m/x.index.json", [content])
    assert caught.value.message.startswith("/m/x.index.json: expected ")
    assert ", found " in caught.value.message
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 300
    assert caught.value.hint
    return caught.value


def test_an_index_names_shards_and_their_size() -> None:
    found = index_of(
        {
            "metadata": {"total_size": 12},
            "weight_map": {"a": "x.bin", "b": "./y//z.bin", "c": "x.bin"},
        }
    )
    assert found == Index(frozenset(["x.bin", "y/z.bin"]), 12)
    assert parse_index("i", [b'\xef\xbb\xbf{"weight_map": {"a": "b"}}']).shards == {"b"}


@pytest.mark.parametrize(
    ("metadata", "size"),
    [
        ({"total_size": 4e9}, 4_000_000_000),  # as some tools write it
        ({"total_size": 0}, 0),
        *[({"total_size": size}, None) for size in ("12", None, -1, [12], 1e300, 10**400, 2**63)],
        *[({"total_size": size}, None) for size in (float("nan"), float("inf"))],
        ({}, None),
        ([], None),
        (None, None),
    ],
)
def test_a_strange_total_size_claims_nothing(metadata: object, size: int | None) -> None:
    found = index_of({"metadata": metadata, "weight_map": {"a": "b"}})
    assert found.total_size_bytes == size


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\0", b"not JSON", b"{", b'{"weight_map": {"a": "b"}} x', b"\xff\xfe", b"1" * 5000),
        *(
            b"{'weight_map': {}}",
            b"<html>\n<title>404</title>",
            b'{"weight_map": {"a": "\x1b[31m"}}',
        ),
    ],
)
def test_an_index_that_is_not_json(content: bytes) -> None:
    assert "expected JSON, found none (" in refusal(content).message


@pytest.mark.parametrize(
    "document",
    [
        *([], {}, None, 1, "x", {"weight_map": []}, {"weight_map": None}, {"weight_map": {}}),
        *({"weight_map": "x.bin"}, {"weight_map": ["x.bin"]}, {"weights": {"a": "x.bin"}}),
    ],
)
def test_an_index_without_a_weight_map(document: object) -> None:
    message = refusal(json.dumps(document).encode()).message
    assert "expected an object weight_map that names the shards, found none" in message


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/x", "'../../etc/x'"),
        ("a/../../x", "'a/../../x'"),
        ("a/..", "'a/..'"),
        ("..", "'..'"),
        ("/etc/passwd", "'/etc/passwd'"),
        ("//x", "'//x'"),
        ("", "''"),
        (".", "'.'"),
        ("./", "'./'"),
        ("a\0b", r"'a\x00b'"),
        ("\ud800x", r"'\ud800x'"),
        ("../\x1b[31m", r"'../\x1b[31m'"),
        ("../" + "x" * 10_000, None),
        (None, "null"),
        (7, "a number"),
        (True, "a truth value"),
        ([], "a list"),
        ({}, "an object"),
    ],
)
def test_an_index_that_leads_out_of_the_checkpoint(name: object, shown: str | None) -> None:
    error = refusal(json.dumps({"weight_map": {"a": "ok.bin", "b": name}}).encode())
    assert "expected file names inside the checkpoint, found " in error.message
    if shown is not None:
        assert error.message.endswith(f"found {shown}")


def test_names_with_any_byte_are_names() -> None:
    strange = ["[red]x.bin", "a\nb.bin", "\x1b[31m.bin", os.fsdecode(b"\xff.bin"), "..x.bin"]
    assert index_of({"weight_map": {str(n): name for n, name in enumerate(strange)}}).shards == {
        *strange
    }


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 10_000_000,
        b'{"a":' * 1_000_000,
        b"[" + b"[]," * 1_000_000 + b"1]",
        b'{"weight_map":{' + b",".join(b'"%d":"%d"' % (n, n) for n in range(1_100_000)) + b"}}",
        b'{"weight_map":{"a":"' + b"x" * (64 << 20) + b'"}}',
    ],
    ids=["deep list", "deep object", "many lists", "many names", "long name"],
)
def test_a_hostile_index_is_refused(content: bytes) -> None:
    assert "found JSON far too large or nested" in refusal(content).message


def test_parsing_fits_the_stack_of_a_thread() -> None:
    # Some Pythons' parsers recurse until the thread's stack overflows.
    code = """
        import contextlib
        from prefetch_cli.base.errors import CheckpointError
        from prefetch_cli.checkpoint.index import parse_index
        from prefetch_cli.linux.threads import spawn

        def parse():
            for opening in (b"[", b'{"a":'):
                for depth in (999, 1001, 5000, 1_000_000):
                    with contextlib.suppress(CheckpointError):
                        parse_index("index", [opening * depth])
            print("survived")

        spawn(parse).join()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "survived\n"), done.stderr


def test_an_index_of_a_very_large_model_is_read() -> None:
    name = "model.layers.{}.mlp.experts.{}.down_proj.weight_scale_inv"
    weight_map = {
        name.format(n // 400, n): f"model-{n % 160}-of-160.safetensors" for n in range(200_000)
    }
    assert len(index_of({"metadata": {}, "weight_map": weight_map}).shards) == 160


@given(
    st.binary()
    | st.recursive(
        st.none() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from(["weight_map", "metadata", "total_size"]), inner)
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_content_is_an_index_below_its_folder_or_refused(content: bytes) -> None:
    try:
        found = parse_index("i", [content])
    except CheckpointError as error:
        assert error.message.isprintable()  # noqa: PT017
    else:
        for shard in found.shards:
            assert os.path.realpath(os.path.join("/m", shard)).startswith("/m/")


# Layouts


def named(path: str, content: bytes) -> list[str]:
    return [one.folder for one in layouts.components(path, content)]


def components(document: object) -> list[str]:
    return named("/m/model_index.json", json.dumps(document).encode())


def modules(document: object) -> list[str]:
    return named("/m/modules.json", json.dumps(document).encode())


def test_the_components_of_diffusers() -> None:
    assert components(
        {
            "_class_name": "StableDiffusionPipeline",
            "_name_or_path": ["a", "b"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            "safety_checker": [None, None],
            "image_encoder": [None, "X"],
            "requires_safety_checker": True,
            "layers": [9, 18, 27],
            "pair": [9, 18],
        }
    ) == ["unet", "vae"]


def test_the_modules_of_sentence_transformers() -> None:
    prefix = "sentence_transformers.models."
    assert modules(
        [
            {"idx": 0, "name": "0", "path": "", "type": prefix + "Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": prefix + "Pooling"},
            {"idx": 2, "name": "2", "path": "deep/2_Dense/", "type": prefix + "Dense"},
            {"idx": 3, "name": "3", "path": "3_Normalize", "type": prefix + "Normalize"},
            {"idx": 4, "name": "4", "path": ".", "type": "custom.X"},
            {"idx": 5, "name": "5", "path": "1_Pooling"},
            {"idx": 6, "name": "6"},
            "no module",
        ]
    ) == ["", "1_Pooling", "deep/2_Dense", "3_Normalize"]


@pytest.mark.parametrize(
    ("parse", "document", "message"),
    [
        (components, [], "expected an object of components, found a list"),
        (modules, {}, "expected a list of modules, found an object"),
        (components, {"../x": ["a", "B"]}, "expected folders inside the checkpoint, found '../x'"),
        (modules, [{"path": "/etc"}], "expected folders inside the checkpoint, found '/etc'"),
        (modules, [{"path": ["x"]}], "expected folders inside the checkpoint, found a list"),
        (modules, [{"path": None}], "expected folders inside the checkpoint, found null"),
    ],
)
def test_a_malformed_layout(parse: object, document: object, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse(document)  # type: ignore[operator]
    assert caught.value.message.endswith(message)


def test_a_layout_that_is_not_json() -> None:
    with pytest.raises(CheckpointError, match=r"^/m/modules\.json: expected JSON, found none"):
        named("/m/modules.json", b"version https")
