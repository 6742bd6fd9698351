"""What llama.cpp reads of `org/name[:QUANT]`, in its cache of today and of before."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.words import LoadFormat, Server
from prefetch_cli.checkpoint.llamacpp import chosen, locate
from prefetch_cli.checkpoint.manifest import Terms
from prefetch_cli.checkpoint.request import Pick, Reference
from prefetch_cli.checkpoint.selection import Filters
from prefetch_cli.checkpoint.servers import rules_of
from tests.helpers.hub_caches import commit

REPO = (
    "README.md",
    "imatrix-Q4_K_M.gguf",
    "m-F16.gguf",
    "m-Q4_K_M.gguf",
    "m-Q8_0.gguf",
    "mmproj-m-F16.gguf",
    "mmproj-m-Q8_0.gguf",
)
FOLDERS = (
    "Q8_0/m-Q8_0-00001-of-00002.gguf",
    "Q8_0/m-Q8_0-00002-of-00002.gguf",
    "UD-Q4_K_XL/m-UD-Q4_K_XL.gguf",
    "UD-Q4_K_XL/mmproj-BF16.gguf",
    "mmproj-F16.gguf",
)


@pytest.mark.parametrize(
    ("names", "quantisation", "model"),
    [
        (REPO, "", "m-Q4_K_M.gguf"),
        (REPO, "q8_0", "m-Q8_0.gguf"),
        (REPO, "F16", "m-F16.gguf"),
        (("m-Q2_K.gguf", "m-Q8_0.gguf"), "", "m-Q8_0.gguf"),
        (("a-Q2_K.gguf", "b-Q3_K.gguf"), "", "a-Q2_K.gguf"),
        (FOLDERS, "Q4_K_XL", "UD-Q4_K_XL/m-UD-Q4_K_XL.gguf"),
        # A dot in a name is a dot.
        (("m-Q4xK-x.gguf", "m-Q4.K-y.gguf"), "Q4.K", "m-Q4.K-y.gguf"),
    ],
)
def test_the_quantisation_chooses_the_model(
    names: tuple[str, ...], quantisation: str, model: str
) -> None:
    assert chosen(names, quantisation, Pick(projector=False)) == [model]


@pytest.mark.parametrize(
    ("names", "quantisation"),
    [(REPO, "Q5_K_M"), (("mmproj-F16.gguf", "imatrix.gguf", "config.json"), ""), ((), "")],
)
def test_where_nothing_fits_nothing_is_chosen(names: tuple[str, ...], quantisation: str) -> None:
    assert chosen(names, quantisation, Pick()) == []


def test_all_parts_of_a_split_model_are_read_even_one_that_is_missing() -> None:
    found = chosen(FOLDERS, "Q8_0", Pick(projector=False))
    assert found == list(FOLDERS[:2])
    assert chosen(FOLDERS[:1], "", Pick()) == list(FOLDERS[:2])
    assert chosen(FOLDERS[1:2], "", Pick()) == list(FOLDERS[:2])


@pytest.mark.parametrize(
    ("names", "quantisation", "projector"),
    [
        (REPO, "F16", "mmproj-m-F16.gguf"),
        (REPO, "Q8_0", "mmproj-m-Q8_0.gguf"),
        (FOLDERS, "Q8_0", "mmproj-F16.gguf"),
        (FOLDERS, "Q4_K_XL", "UD-Q4_K_XL/mmproj-BF16.gguf"),
        (("a/m-Q8_0.gguf", "a/mmproj-F32.gguf", "mmproj-Q8_0.gguf"), "", "a/mmproj-F32.gguf"),
    ],
)
def test_the_projector_nearest_to_the_model_goes_with_it(
    names: tuple[str, ...], quantisation: str, projector: str
) -> None:
    assert chosen(names, quantisation, Pick())[-1] == projector
    assert projector not in chosen(names, quantisation, Pick(projector=False))


def test_a_file_that_is_named_wins_in_any_case() -> None:
    assert chosen(REPO, "Q8_0", Pick("M-f16.GGUF", projector=False)) == ["m-F16.gguf"]
    assert chosen(REPO, "Q8_0", Pick("x.gguf")) == []


def write(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"GGUF")


def located(
    argument: str,
    cache: Path,
    pick: Pick | None = None,
    *,
    exclude: str = "",
    environ: Mapping[str, str] | None = None,
) -> tuple[str, str | None, list[str]]:
    """Return kind, revision and the files of a repo, relative to the cache."""
    terms = Terms(
        shown=argument,
        load_format=LoadFormat.AUTO,
        rules=rules_of(Server.LLAMA_CPP),
        server_known=True,
        filters=Filters(exclude=(exclude,) if exclude else ()),
    )
    reference = Reference(argument, cache_dir=str(cache / "hub"), pick=pick or Pick())
    kind, _, revision, manifest = locate(
        reference, pick or Pick(), terms, {"HOME": str(cache), **(environ or {})}, Monitor()
    )
    assert manifest.load_format is LoadFormat.GGUF
    return kind, revision, [os.path.relpath(path, cache) for path in manifest.weights]


def lay(cache: Path, names: tuple[str, ...]) -> str:
    """Write the snapshot of org/m as llama.cpp and huggingface_hub do; return its folder."""
    repo = cache / "hub" / "models--org--m"
    write(repo / "snapshots" / commit("a"), names)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit("a"))
    return f"hub/models--org--m/snapshots/{commit('a')}"


def test_a_repo_is_found_in_the_cache_of_today(tmp_path: Path) -> None:
    folder = lay(tmp_path, FOLDERS)
    assert located("org/m:Q8_0", tmp_path) == (
        "huggingface",
        commit("a"),
        [f"{folder}/{name}" for name in (*FOLDERS[:2], "mmproj-F16.gguf")],
    )
    found = located("org/m:Q8_0", tmp_path, exclude="mmproj*")
    assert found[2] == [f"{folder}/{name}" for name in FOLDERS[:2]]


@pytest.mark.parametrize("variable", ["HOME", "XDG_CACHE_HOME", "LLAMA_CACHE"])
def test_a_repo_is_found_in_the_cache_of_older_builds(tmp_path: Path, variable: str) -> None:
    places = {"HOME": ".cache/llama.cpp", "XDG_CACHE_HOME": "xdg/llama.cpp", "LLAMA_CACHE": "own"}
    place = places[variable]
    write(tmp_path / place, tuple(f"org_m_{name}" for name in REPO))
    write(tmp_path / place, ("org_other_x-Q4_K_M.gguf",))
    environ = {} if variable == "HOME" else {variable: str(tmp_path / place.split("/")[0])}
    assert located("org/m:Q8_0", tmp_path, environ=environ) == (
        "directory",
        None,
        [f"{place}/org_m_{name}" for name in ("m-Q8_0.gguf", "mmproj-m-Q8_0.gguf")],
    )


def test_what_is_not_there_is_an_error_that_says_what_is(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"org/m: expected .* found no such path"):
        located("org/m", tmp_path)
    lay(tmp_path, REPO)
    with pytest.raises(CheckpointError, match=r"expected Q5_0 in .*, found .*m-F16\.gguf"):
        located("org/m:Q5_0", tmp_path)
    with pytest.raises(CheckpointError, match=r"expected x\.gguf in"):
        located("org/m", tmp_path, Pick("x.gguf"))
