"""Repo ids resolve as with huggingface_hub and modelscope, and never out of the cache."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils._validators import validate_repo_id
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefetch_cli.base.errors import CheckpointError, ExitCode
from prefetch_cli.base.words import Hub, Server
from prefetch_cli.hubs.hub import chosen_hub, find_snapshot, is_repo_id
from prefetch_cli.hubs.hub_cache import Snapshot
from tests.helpers.hub_caches import (
    Download,
    FakeHub,
    commit,
    lay_huggingface,
    lay_modelscope,
    lay_ollama,
    write_caches,
)

MAIN, OLDER, PULL = commit("main"), commit("v1.0"), commit("refs/pr/1")
REVISIONS = {"main": MAIN, "v1.0": OLDER, "refs/pr/1": PULL, "branch/x": OLDER}

Unprivileged = Callable[[], contextlib.AbstractContextManager[None]]


def find(
    cache: Path,
    repo_id: str = "org/name",
    *,
    revision: str | None = None,
    hub: Hub = Hub.HUGGINGFACE,
) -> Snapshot:
    return find_snapshot(
        repo_id, hub=hub, revision=revision, cache_dir=str(cache), environ={"HOME": "/nonexistent"}
    )


def refusal(
    cache: Path,
    repo_id: str = "org/name",
    *,
    revision: str | None = None,
    hub: Hub = Hub.HUGGINGFACE,
) -> CheckpointError:
    """Return the error of a failed look-up, after checks that all errors must pass."""
    with pytest.raises(CheckpointError) as caught:
        find(cache, repo_id, revision=revision, hub=hub)
    error = caught.value
    assert error.exit_code is ExitCode.CHECKPOINT
    assert error.message.isprintable()
    assert error.hint is None or error.hint.isprintable()
    return error


def oracle(cache: Path, repo_id: str = "org/name", revision: str | None = None) -> str:
    return huggingface_hub.snapshot_download(
        repo_id, revision=revision, cache_dir=cache, local_files_only=True
    )


@pytest.fixture
def unprivileged(tmp_path: Path) -> Iterator[Unprivileged]:
    """Return a context in which root, if we are root, may not read everything."""
    is_root = os.geteuid() == 0
    closed = [each for each in tmp_path.parents if is_root and not each.stat().st_mode & 0o001]
    modes = [each.stat().st_mode for each in closed]

    @contextlib.contextmanager
    def dropped() -> Iterator[None]:
        if is_root:
            os.seteuid(65534)
        try:
            yield
        finally:
            if is_root:
                os.seteuid(0)

    for each, mode in zip([tmp_path, *closed], [0o700, *modes], strict=True):
        each.chmod(mode | 0o011)
    yield dropped
    for each, mode in zip(closed, modes, strict=True):
        each.chmod(mode)


# The choice of the hub, and the grammar of repo ids


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, Hub.HUGGINGFACE),
        ("", Hub.HUGGINGFACE),
        ("0", Hub.HUGGINGFACE),
        ("False", Hub.HUGGINGFACE),
        ("yes", Hub.HUGGINGFACE),
        ("true", Hub.MODELSCOPE),
        ("True", Hub.MODELSCOPE),
        (" TRUE\n", Hub.MODELSCOPE),
        ("1", Hub.MODELSCOPE),
    ],
)
@pytest.mark.parametrize("server", [Server.AUTO, Server.VLLM])
def test_vllms_variable_chooses_the_hub(value: str | None, expected: Hub, server: Server) -> None:
    environ = {} if value is None else {"VLLM_USE_MODELSCOPE": value}
    assert chosen_hub(None, server, environ) is expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", Hub.HUGGINGFACE),
        ("0", Hub.HUGGINGFACE),
        ("on", Hub.HUGGINGFACE),
        (" true", Hub.HUGGINGFACE),
        ("true", Hub.MODELSCOPE),
        ("TRUE", Hub.MODELSCOPE),
        ("1", Hub.MODELSCOPE),
        ("Yes", Hub.MODELSCOPE),
        ("y", Hub.MODELSCOPE),
    ],
)
def test_sglangs_variable_chooses_the_hub(value: str, expected: Hub) -> None:
    assert chosen_hub(None, Server.SGLANG, {"SGLANG_USE_MODELSCOPE": value}) is expected


@pytest.mark.parametrize("server", Server)
def test_no_variable_counts_for_another_server(server: Server) -> None:
    expected = Hub.OLLAMA if server is Server.OLLAMA else Hub.HUGGINGFACE
    for variable, servers in (
        ("VLLM_USE_MODELSCOPE", (Server.AUTO, Server.VLLM)),
        ("SGLANG_USE_MODELSCOPE", (Server.SGLANG,)),
    ):
        if server not in servers:
            assert chosen_hub(None, server, {variable: "true"}) is expected


@pytest.mark.parametrize("asked", Hub)
def test_asked_hub_wins_over_the_environment(asked: Hub) -> None:
    assert chosen_hub(asked, Server.AUTO, {"VLLM_USE_MODELSCOPE": "true"}) is asked
    assert chosen_hub(asked, Server.AUTO, {}) is asked


@example("org/a..b")
@example("org/a--b")
@example("org/name.git")
@example("org/-name")
@given(
    st.one_of(
        st.from_regex(r"[a-zA-Z0-9._/-]{0,12}(\.git)?", fullmatch=True),
        st.from_regex(r"([a-z0-9]{1,3}/)?[a-z0-9._-]{94,98}", fullmatch=True),
        st.text(st.characters(max_codepoint=126, exclude_characters="\n"), max_size=90),
    )
)
def test_repo_id_is_what_huggingface_hub_accepts(text: str) -> None:
    try:
        validate_repo_id(text)
    except HFValidationError:
        assert not is_repo_id(text)
    else:
        assert is_repo_id(text)


@pytest.mark.parametrize(
    "text", ["café", "org/名", "name\n", "org/name\n", "a/b/c", "", "/", "~/x"]
)
def test_no_repo_id(text: str, tmp_path: Path) -> None:
    assert not is_repo_id(text)
    assert "expected a repo id" in refusal(tmp_path, text).message


# Caches that huggingface_hub wrote


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with several kinds of caches, all written by huggingface_hub itself."""
    top = tmp_path_factory.mktemp("written")
    links, copies, pinned, both = (top / name for name in ("links", "copies", "pinned", "both"))
    downloads = [
        Download(links, "org/name"),
        Download(links, "org/name", "v1.0"),
        Download(links, "org/name", "branch/x"),
        Download(links, "org/name", "refs/pr/1", filename="config.json"),
        Download(links, "org/name", filename="missing.json"),  # leaves .no_exist
        Download(links, "gpt2", filename="config.json"),
        Download(links, "Qwen/Qwen2.5-0.5B", "v1.0", filename="config.json"),
        Download(copies, "org/name", symlinks=False),
        Download(pinned, "org/name", OLDER),
        Download(both, "org/name", OLDER),
        Download(both, "org/name", MAIN),
    ]
    write_caches(FakeHub(REVISIONS), downloads, home=top)
    return top


@pytest.mark.parametrize("revision", [None, *REVISIONS, MAIN, OLDER, PULL])
def test_revision_is_found_as_by_huggingface_hub(written: Path, revision: str | None) -> None:
    cache = written / "links"
    found = find(cache, revision=revision)
    config = huggingface_hub.try_to_load_from_cache("org/name", "config.json", cache, revision)

    expected = REVISIONS.get(revision or "main", revision)
    assert found == Snapshot(oracle(cache, revision=revision), Hub.HUGGINGFACE, expected)
    assert os.path.join(found.path, "config.json") == config
    assert (Path(found.path) / "config.json").read_text() == f"config.json of {expected}"


def test_bare_name_and_name_with_dots(written: Path) -> None:
    cache = written / "links"
    assert find(cache, "gpt2").path == oracle(cache, "gpt2")
    dotted = find(cache, "Qwen/Qwen2.5-0.5B", revision="v1.0")
    assert dotted.path == oracle(cache, "Qwen/Qwen2.5-0.5B", "v1.0")


def test_copies_in_place_of_symlinks(written: Path) -> None:
    found = find(written / "copies")
    assert found == Snapshot(oracle(written / "copies"), Hub.HUGGINGFACE, MAIN)
    assert not any(path.is_symlink() for path in Path(found.path).rglob("*"))


def test_only_snapshot_of_a_pinned_download(written: Path) -> None:
    cache = written / "pinned"
    assert not (cache / "models--org--name" / "refs").exists()
    with pytest.raises(LocalEntryNotFoundError):
        oracle(cache)

    assert find(cache).revision == OLDER
    assert find(cache).path == oracle(cache, revision=OLDER)
    assert f"no refs; snapshots {OLDER}" in refusal(cache, revision="main").message


def test_only_snapshot_of_a_tag(written: Path) -> None:
    assert find(written / "links", "Qwen/Qwen2.5-0.5B").revision == OLDER


def test_several_snapshots_without_main_are_named(written: Path) -> None:
    error = refusal(written / "both")
    assert MAIN in error.message
    assert OLDER in error.message
    assert "--revision" in (error.hint or "")


def test_abbreviated_commit(written: Path) -> None:
    cache = written / "links"
    for digits in (4, 7, 39):
        assert find(cache, revision=OLDER[:digits]).revision == OLDER
    assert find(cache, revision=OLDER[:8].upper()).revision == OLDER
    assert "is not in" in refusal(cache, revision=OLDER[:3]).message


def test_unknown_revision_names_what_is_there(written: Path) -> None:
    error = refusal(written / "links", revision="v9")
    assert str(written / "links") in error.message
    assert "refs branch/x, main, refs/pr/1, v1.0; snapshots " in error.message
    assert all(each in error.message for each in (MAIN, OLDER, PULL))
    assert "`hf download org/name --revision v9`" in (error.hint or "")


def test_unknown_commit_names_what_is_there(written: Path) -> None:
    error = refusal(written / "links", revision="f" * 40)
    assert MAIN in error.message
    with pytest.raises(LocalEntryNotFoundError):
        oracle(written / "links", revision="f" * 40)


def test_looking_up_writes_nothing(written: Path) -> None:
    def listed() -> list[tuple[str, int]]:
        return sorted((str(path), path.lstat().st_mtime_ns) for path in written.rglob("*"))

    before = listed()
    for revision in (None, "v1.0", OLDER):
        find(written / "links", revision=revision)
    for hub in Hub:
        refusal(written / "links", "org/absent", hub=hub)
    refusal(written / "absent")
    assert listed() == before


# Caches that huggingface_hub would not write


def test_ambiguous_abbreviation_names_the_candidates(tmp_path: Path) -> None:
    one, two, other = "abcd1" + "0" * 35, "abcd2" + "0" * 35, "abce" + "0" * 36
    lay_huggingface(tmp_path, commits=[one, two, other])
    error = refusal(tmp_path, revision="abcd")
    assert f"2 commits of org/name: {one}, {two}" in error.message
    assert find(tmp_path, revision="abcd2").revision == two


def test_ref_wins_over_an_abbreviated_commit(tmp_path: Path) -> None:
    lay_huggingface(tmp_path, refs={"abcd": MAIN}, commits=[MAIN, "abcd" + "0" * 36])
    assert find(tmp_path, revision="abcd").revision == MAIN
    assert oracle(tmp_path, revision="abcd").endswith(MAIN)


def test_commit_wins_over_a_ref_of_that_name(tmp_path: Path) -> None:
    lay_huggingface(tmp_path, refs={OLDER: MAIN}, commits=[MAIN, OLDER])
    assert find(tmp_path, revision=OLDER).path == oracle(tmp_path, revision=OLDER)
    assert find(tmp_path, revision=OLDER).revision == OLDER


def test_ref_whose_snapshot_is_gone(tmp_path: Path) -> None:
    lay_huggingface(tmp_path, refs={"main": MAIN}, commits=[OLDER])
    error = refusal(tmp_path)
    assert f"the ref main of org/name points to commit {MAIN}, whose snapshot" in error.message
    assert OLDER in error.message
    assert "hf download org/name" in (error.hint or "")


def test_ref_with_a_line_end(tmp_path: Path) -> None:
    lay_huggingface(tmp_path, refs={"main": f"{MAIN}\n"}, commits=[MAIN, OLDER])
    assert find(tmp_path).revision == MAIN


def test_snapshot_that_is_no_directory_or_no_commit(tmp_path: Path) -> None:
    repo = lay_huggingface(tmp_path, commits=[MAIN])
    (repo / "snapshots" / OLDER).write_text("a file")
    (repo / "snapshots" / PULL).symlink_to(PULL)
    (repo / "snapshots" / "main").mkdir()
    (repo / "snapshots" / ".DS_Store").write_text("")
    assert find(tmp_path).revision == MAIN
    refusal(tmp_path, revision=OLDER)
    refusal(tmp_path, revision=PULL)


def test_snapshot_may_be_a_link(tmp_path: Path) -> None:
    repo = lay_huggingface(tmp_path / "cache", refs={"main": MAIN})
    (repo / "snapshots").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (repo / "snapshots" / MAIN).symlink_to(tmp_path / "elsewhere")
    assert find(tmp_path / "cache").path == oracle(tmp_path / "cache")


HOSTILE_REFS = [
    b"",
    b"\n",
    b"main",
    b"../../../etc",
    b"/etc",
    MAIN.upper().encode(),
    MAIN[:39].encode(),
    MAIN.encode() + b"0",
    MAIN.encode() + b"/../../../..",
    MAIN.encode() + b"\n" + OLDER.encode(),
    b"\x1b[2J\x1b]0;x\x07" + b"\xff" * 20,
    MAIN.encode() + b" " * 10_000,
    b"\0" * 1_000_000,
]


@pytest.mark.parametrize("content", HOSTILE_REFS, ids=lambda content: repr(content[:12]))
def test_ref_that_holds_no_commit(tmp_path: Path, content: bytes) -> None:
    lay_huggingface(tmp_path, refs={"main": content}, commits=[MAIN])
    error = refusal(tmp_path)
    assert "expected a commit of 40 hex digits in " in error.message
    assert "refs/main, found " in error.message
    assert len(error.message) < 600
    assert find(tmp_path, revision=MAIN).revision == MAIN


def test_ref_that_is_no_file_does_not_block(tmp_path: Path) -> None:
    repo = lay_huggingface(tmp_path, refs={"refs/pr/1": MAIN}, commits=[MAIN])
    os.mkfifo(repo / "refs" / "pipe")
    assert "is not in" in refusal(tmp_path, revision="pipe").message
    assert "is not in" in refusal(tmp_path, revision="refs/pr").message
    assert find(tmp_path, revision="refs/pr/1").revision == MAIN


@pytest.mark.parametrize("hub", Hub)
@pytest.mark.parametrize(
    "revision",
    [
        "",
        ".",
        "..",
        "../outside",
        "a/../../outside",
        "/etc/passwd",
        "main/",
        "a//b",
        "./main",
        "\0",
    ],
)
def test_revision_never_climbs(tmp_path: Path, revision: str, hub: Hub) -> None:
    repo = lay_huggingface(tmp_path, refs={"main": MAIN, "a/b": MAIN}, commits=[MAIN])
    lay_modelscope(tmp_path / "models" / "org--name" / "snapshots" / "master")
    for place in (repo / "outside", tmp_path / "models" / "org--name" / "outside"):
        place.write_text(MAIN)
    error = refusal(tmp_path, revision=revision, hub=hub)
    assert "expected a branch, a tag or a commit" in error.message


def test_names_are_shown_escaped(tmp_path: Path) -> None:
    cache = tmp_path / "a\nb\x1b[31m\udcff"
    lay_huggingface(cache, refs={"x\ty": MAIN}, commits=[MAIN])
    error = refusal(cache, revision="\x1b]0;title\x07")
    assert r"a\nb\x1b[31m\xff/models--org--name: found refs x\ty;" in error.message
    assert r"revision \x1b]0;title\x07 of" in error.message
    assert r"a\nb\x1b[31m\xff" in refusal(cache, "org/absent").message


# Nothing cached


def test_repo_that_is_not_cached(tmp_path: Path) -> None:
    error = refusal(tmp_path)
    assert error.message == (
        "org/name: expected a path that exists or a repo in the Hugging Face cache "
        f"{tmp_path}, found neither"
    )
    assert error.hint == "`hf download org/name` fetches it; or give a path, or another --cache-dir"


def test_repo_folder_without_snapshot(tmp_path: Path) -> None:
    (tmp_path / "models--org--name" / ".no_exist").mkdir(parents=True)
    assert refusal(tmp_path).message.endswith(f"{tmp_path}, found its folder without a snapshot")


def test_id_in_another_case_is_suggested(tmp_path: Path) -> None:
    lay_huggingface(tmp_path, "Org/Name", refs={"main": MAIN}, commits=[MAIN])
    assert refusal(tmp_path, "org/name").hint == "did you mean Org/Name?"


@pytest.mark.parametrize("hub", Hub)
def test_cache_that_is_no_directory(tmp_path: Path, hub: Hub) -> None:
    absent = tmp_path / "absent"
    assert refusal(absent, hub=hub).message.endswith(
        f"{absent}, found no such path and no such cache"
    )
    file = tmp_path / "file"
    file.write_text("")
    expected = f"{file}, found no such path and a cache that cannot be listed: Not a directory"
    assert refusal(file, hub=hub).message.endswith(expected)


@pytest.mark.parametrize("hub", Hub)
def test_cache_that_cannot_be_listed(tmp_path: Path, hub: Hub, unprivileged: Unprivileged) -> None:
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o111)
    with unprivileged():
        error = refusal(cache, hub=hub)
    cache.chmod(0o700)  # pytest removes it
    assert error.message.endswith("and a cache that cannot be listed: Permission denied")


@pytest.mark.parametrize("hub", Hub)
def test_cache_that_cannot_be_entered(tmp_path: Path, hub: Hub, unprivileged: Unprivileged) -> None:
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o444)
    with unprivileged():
        error = refusal(cache, hub=hub)
    cache.chmod(0o700)  # pytest removes it
    if hub is Hub.OLLAMA:
        assert error.message == f"cannot read {cache}/manifests-v2: Permission denied"
        assert "the group ollama" in (error.hint or "")
    else:
        assert error.message.startswith(f"cannot read {cache}/models")
        assert error.message.endswith("/snapshots: Permission denied")


def test_ref_that_cannot_be_read(tmp_path: Path, unprivileged: Unprivileged) -> None:
    repo = lay_huggingface(tmp_path, refs={"main": MAIN}, commits=[MAIN])
    (repo / "refs" / "main").chmod(0)
    with unprivileged():
        error = refusal(tmp_path)
    assert error.message == f"cannot read {repo}/refs/main: Permission denied"


# Where the cache is; the oracle: huggingface_hub's constants in a process of their own

ENVIRONMENTS: list[dict[str, str]] = [
    {},
    {"XDG_CACHE_HOME": "{top}/xdg"},
    {"XDG_CACHE_HOME": ""},
    {"XDG_CACHE_HOME": "~/xdg"},
    {"HF_HOME": "{top}/hf"},
    {"HF_HOME": ""},
    {"HF_HOME": "~/hf"},
    {"HF_HOME": "~"},
    {"HF_HOME": "$PLACE/hf"},
    {"HF_HOME": "${PLACE}/hf"},
    {"HF_HOME": "$ABSENT/hf"},
    {"HF_HOME": "${}/$/hf"},
    {"HF_HOME": "$TWICE/hf"},
    {"HF_HOME": "$TILDE/hf"},
    {"HF_HOME": "{top}/hf", "XDG_CACHE_HOME": "{top}/xdg"},
    {"HUGGINGFACE_HUB_CACHE": "{top}/old"},
    {"HUGGINGFACE_HUB_CACHE": "~/old/$PLACE"},
    {"HUGGINGFACE_HUB_CACHE": ""},
    {"HUGGINGFACE_HUB_CACHE": "{top}/old", "HF_HOME": "{top}/hf"},
    {"HF_HUB_CACHE": "{top}/hub"},
    {"HF_HUB_CACHE": "relative/hub"},
    {"HF_HUB_CACHE": ""},
    {"HF_HUB_CACHE": "~/hub"},
    {"HF_HUB_CACHE": "$TILDE/hub"},
    {"HF_HUB_CACHE": "$PLACE/a$PLACE"},
    {"HF_HUB_CACHE": "{top}/link/../hub"},
    {"HF_HUB_CACHE": "{top}/hub", "HUGGINGFACE_HUB_CACHE": "{top}/old", "HF_HOME": "{top}/hf"},
    {"HF_HUB_CACHE": "", "HUGGINGFACE_HUB_CACHE": "{top}/old"},
    {"HOME": "{top}/home/", "HF_HUB_CACHE": "~/hub"},
    {"HOME": ""},
    {"HOME": "/"},
    {"HOME": "", "HF_HUB_CACHE": "~{top}/hub"},
    {"HOME": "", "HF_HUB_CACHE": "~/{top}/hub"},
]
_CACHE_OF_ORACLE = """
import os, pathlib
from huggingface_hub import constants
print(pathlib.Path(constants.HF_HUB_CACHE).expanduser().resolve(), end="")
"""


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict[str, str], str]]:
    """Return each environment with the cache directory that huggingface_hub uses in it."""
    top = tmp_path_factory.mktemp("environments")
    for folder in ("home", "place", "target/deep", "work"):
        (top / folder).mkdir(parents=True)
    (top / "link").symlink_to("target/deep")
    default = {
        "HOME": f"{top}/home",
        "PLACE": f"{top}/place",
        "TILDE": "~",
        "TWICE": "$PLACE",
    }
    environs = [
        default | {name: value.replace("{top}", str(top)) for name, value in each.items()}
        for each in ENVIRONMENTS
    ]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _CACHE_OF_ORACLE],
            cwd=top / "work",
            env=environ,
            stdout=subprocess.PIPE,
            text=True,
        )
        for environ in environs
    ]
    caches = [process.communicate()[0] for process in processes]
    assert not any(process.returncode for process in processes)
    return list(zip(environs, caches, strict=True))


@pytest.mark.parametrize("number", range(len(ENVIRONMENTS)), ids=lambda n: str(ENVIRONMENTS[n]))
def test_cache_directory_is_that_of_huggingface_hub(
    environments: list[tuple[dict[str, str], str]], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ, cache = environments[number]
    monkeypatch.chdir(Path(environ["PLACE"]).parent / "work")
    with pytest.raises(CheckpointError) as caught:
        find_snapshot(
            "org/name", hub=Hub.HUGGINGFACE, revision=None, cache_dir=None, environ=environ
        )
    searched = caught.value.message.partition("Hugging Face cache ")[2]
    assert searched.rpartition(", found ")[0] == cache


def test_home_comes_from_the_user_table_if_the_environment_has_none() -> None:
    with pytest.raises(CheckpointError) as caught:
        find_snapshot(
            "prefetch-cli-tests/absent",
            hub=Hub.HUGGINGFACE,
            revision=None,
            cache_dir=None,
            environ={},
        )
    environ = {"PATH": os.environ["PATH"]}
    command = [sys.executable, "-c", _CACHE_OF_ORACLE]
    cache = subprocess.run(command, env=environ, capture_output=True, check=True, text=True).stdout
    assert f"cache {cache}" in caught.value.message


@pytest.mark.parametrize("hub", Hub)
def test_cache_dir_wins_over_the_environment(tmp_path: Path, hub: Hub) -> None:
    lay_huggingface(tmp_path / "home" / "given", refs={"main": MAIN}, commits=[MAIN])
    lay_modelscope(tmp_path / "home" / "given" / "org" / "name")
    lay_ollama(tmp_path / "home" / "given", "registry.ollama.ai/org/name/latest", {})
    environ = {
        "HOME": str(tmp_path / "home"),
        "HF_HUB_CACHE": str(tmp_path / "other"),
        "MODELSCOPE_CACHE": str(tmp_path / "other"),
        "OLLAMA_MODELS": str(tmp_path / "other"),
    }
    given_dir = str(tmp_path / "home" / "given")
    for asked in (given_dir, "~/given"):
        found = find_snapshot("org/name", hub=hub, revision=None, cache_dir=asked, environ=environ)
        assert found.path.startswith(given_dir)


# ModelScope: too heavy a dependency, so we write its layouts by hand, after
# hub/utils/utils.py (find_reusable_legacy_repo_dir) of modelscope 1.40.2, _download.py
# (_find_legacy_repo_dir, _resolve_cached_snapshot) of modelscope-hub 0.5.1, and older versions

DOTTED = "Qwen/Qwen3.5-0.8B"
CURRENT = "models/Qwen--Qwen3.5-0.8B/snapshots"
# In modelscope's order of preference; the middle ones only without a folder of 1.38 or later.
OLDER_LAYOUTS = [
    "models/Qwen/Qwen3___5-0___8B",
    "Qwen/Qwen3.5-0.8B",
    "Qwen/Qwen3___5-0___8B",
    "hub/Qwen/Qwen3.5-0.8B",
    "hub/Qwen/Qwen3___5-0___8B",
    "models/Qwen/Qwen3.5-0.8B",
    "hub/models/Qwen/Qwen3___5-0___8B",
]


def find_modelscope(cache: Path, revision: str | None = None) -> Snapshot:
    return find(cache, DOTTED, revision=revision, hub=Hub.MODELSCOPE)


@pytest.mark.parametrize("layout", [*OLDER_LAYOUTS, f"{CURRENT}/master", f"{CURRENT}/v1"])
def test_each_layout_of_modelscope(tmp_path: Path, layout: str) -> None:
    path = lay_modelscope(tmp_path / layout)
    assert find_modelscope(tmp_path) == Snapshot(path, Hub.MODELSCOPE, None)


def test_order_of_older_layouts(tmp_path: Path) -> None:
    paths = [lay_modelscope(tmp_path / layout) for layout in OLDER_LAYOUTS]
    for path in paths:
        assert find_modelscope(tmp_path).path == path
        Path(path).rename(tmp_path / "aside" if path == paths[-1] else f"{path}-aside")
    assert "a repo in the ModelScope cache" in refusal(tmp_path, DOTTED, hub=Hub.MODELSCOPE).message


def test_current_layout_hides_the_flat_ones(tmp_path: Path) -> None:
    lay_modelscope(tmp_path / "hub" / DOTTED)
    path = lay_modelscope(tmp_path / CURRENT / "master")
    assert find_modelscope(tmp_path).path == path
    older = lay_modelscope(tmp_path / OLDER_LAYOUTS[-1])
    assert find_modelscope(tmp_path).path == older


def test_link_from_the_name_to_the_safe_name(tmp_path: Path) -> None:
    path = lay_modelscope(tmp_path / "models/Qwen/Qwen3___5-0___8B")
    (tmp_path / "models/Qwen/Qwen3.5-0.8B").symlink_to(path)
    assert find_modelscope(tmp_path).path == path


def test_folder_left_by_a_mere_look_up(tmp_path: Path) -> None:
    left = tmp_path / OLDER_LAYOUTS[0]
    left.mkdir(parents=True)
    (left / ".mdl").write_bytes(b"")
    (left / ".msc").write_bytes(b"")
    assert "found neither" in refusal(tmp_path, DOTTED, hub=Hub.MODELSCOPE).message
    path = lay_modelscope(tmp_path / CURRENT / "master")
    assert find_modelscope(tmp_path).path == path


def test_recorded_version(tmp_path: Path) -> None:
    version = "Revision:v1.0.0,CreatedAt:1718000000"
    path = lay_modelscope(tmp_path / OLDER_LAYOUTS[0], version=version)
    for revision in (None, "v1.0.0"):
        assert find_modelscope(tmp_path, revision) == Snapshot(path, Hub.MODELSCOPE, None)
    error = refusal(tmp_path, DOTTED, revision="v2", hub=Hub.MODELSCOPE)
    assert error.message == f"revision v2 of {DOTTED} is not in {tmp_path}: found revisions v1.0.0"
    assert f"`modelscope download --model {DOTTED} --revision v2`" in (error.hint or "")


def test_recorded_commit(tmp_path: Path) -> None:
    lay_modelscope(tmp_path / OLDER_LAYOUTS[0], version=f"Revision:{MAIN},CreatedAt:1718000000")
    assert find_modelscope(tmp_path).revision == MAIN
    assert find_modelscope(tmp_path, MAIN).revision == MAIN


@pytest.mark.parametrize(
    "version", [None, "", "garbage", "Revision:,CreatedAt:1", "\0", "x" * 100_000, "Revision:v1"]
)
def test_copy_without_a_recorded_version_is_taken(tmp_path: Path, version: str | None) -> None:
    path = lay_modelscope(tmp_path / OLDER_LAYOUTS[0], version=version)
    for revision in (None, "v2"):
        assert find_modelscope(tmp_path, revision) == Snapshot(path, Hub.MODELSCOPE, None)


def test_search_goes_on_to_the_requested_version(tmp_path: Path) -> None:
    lay_modelscope(tmp_path / OLDER_LAYOUTS[0], version="Revision:v1,CreatedAt:1")
    path = lay_modelscope(tmp_path / CURRENT / "v2")
    assert find_modelscope(tmp_path, "v2").path == path


def test_revisions_of_the_current_layout(tmp_path: Path) -> None:
    names = ["v1", MAIN, "feature/x"]
    paths = {name: lay_modelscope(tmp_path / CURRENT / name) for name in names}
    (tmp_path / CURRENT / "empty").mkdir()
    for name in names:
        found = find_modelscope(tmp_path, name)
        assert found.path == paths[name]
        assert found.revision == (MAIN if name == MAIN else None)
    message = refusal(tmp_path, DOTTED, hub=Hub.MODELSCOPE).message
    assert f"expected master or main or a single revision of {DOTTED}" in message
    assert message.endswith(f"found revisions {MAIN}, feature, v1")
    assert "is not in" in refusal(tmp_path, DOTTED, revision="empty", hub=Hub.MODELSCOPE).message
    older = lay_modelscope(tmp_path / OLDER_LAYOUTS[0])
    assert find_modelscope(tmp_path).path == older
    Path(older).rename(tmp_path / "aside")

    for default in ("main", "master"):
        path = lay_modelscope(tmp_path / CURRENT / default)
        assert find_modelscope(tmp_path).path == path


def test_bare_name_of_modelscope(tmp_path: Path) -> None:
    lay_modelscope(tmp_path / "models" / "org" / "name")
    assert "found neither" in refusal(tmp_path, "models", hub=Hub.MODELSCOPE).message
    path = lay_modelscope(tmp_path / "models" / "name" / "snapshots" / "master")
    assert find(tmp_path, "name", hub=Hub.MODELSCOPE).path == path


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "home/.cache/modelscope"),
        ("", "home/.cache/modelscope"),
        ("{top}/given", "given"),
        ("~/given", "home/given"),
        ("{top}/$HOME", "$HOME"),
    ],
)
def test_cache_directory_of_modelscope(tmp_path: Path, value: str | None, expected: str) -> None:
    environ = {"HOME": f"{tmp_path}/home"}
    if value is not None:
        environ["MODELSCOPE_CACHE"] = value.replace("{top}", str(tmp_path))
    path = lay_modelscope(tmp_path / expected / OLDER_LAYOUTS[-1])
    found = find_snapshot(
        DOTTED, hub=Hub.MODELSCOPE, revision=None, cache_dir=None, environ=environ
    )
    assert found.path == path


# A repo that another hub's cache has


def hint_of(name: str, hub: Hub, environ: dict[str, str], cache_dir: Path | None = None) -> str:
    """Return the hint of a failed look-up in the caches that the environment names."""
    with pytest.raises(CheckpointError) as caught:
        find_snapshot(
            name,
            hub=hub,
            revision=None,
            cache_dir=None if cache_dir is None else str(cache_dir),
            environ=environ,
        )
    assert caught.value.hint is not None
    return caught.value.hint


@pytest.fixture
def three(tmp_path: Path) -> dict[str, str]:
    """Return an environment with an empty cache of each hub."""
    return {
        "HOME": str(tmp_path / "home"),
        "HF_HUB_CACHE": str(tmp_path / "hf"),
        "MODELSCOPE_CACHE": str(tmp_path / "ms"),
        "OLLAMA_MODELS": str(tmp_path / "ollama"),
    }


def test_the_hint_names_the_hub_that_has_the_repo(tmp_path: Path, three: dict[str, str]) -> None:
    lay_huggingface(tmp_path / "hf", "org/in-hf", commits=[MAIN])
    lay_modelscope(tmp_path / "ms" / "models" / "org" / "in-ms")
    lay_ollama(tmp_path / "ollama", "registry.ollama.ai/org/in-ollama/7b", {})
    for name, has, flag in (
        (
            "org/in-hf",
            Hub.HUGGINGFACE,
            "the Hugging Face cache has it: give org/in-hf --hub huggingface",
        ),
        (
            "org/in-ms",
            Hub.MODELSCOPE,
            "the ModelScope cache has it: give org/in-ms --hub modelscope",
        ),
        ("org/in-ollama", Hub.OLLAMA, "the Ollama store has it: give org/in-ollama --hub ollama"),
    ):
        for hub in Hub:
            if hub is not has:
                assert hint_of(name, hub, three) == flag
    assert "hf download org/nowhere" in hint_of("org/nowhere", Hub.HUGGINGFACE, three)


def test_a_repo_of_another_revision_is_not_sought_elsewhere(
    tmp_path: Path, three: dict[str, str]
) -> None:
    lay_huggingface(tmp_path / "hf", commits=[MAIN, OLDER])
    lay_modelscope(tmp_path / "ms" / "models" / "org" / "name")
    assert hint_of("org/name", Hub.HUGGINGFACE, three) == "choose one with --revision"


def test_what_ollama_pulled_from_a_hub(tmp_path: Path, three: dict[str, str]) -> None:
    store = tmp_path / "ollama"
    lay_ollama(store, "hf.co/org/gguf/Q4_K_M", {})
    assert hint_of("org/gguf", Hub.HUGGINGFACE, three) == (
        "the Ollama store has it as hf.co/org/gguf: give hf.co/org/gguf --hub ollama"
    )
    lay_ollama(store, "modelscope.cn/org/other/latest", {})
    assert "modelscope.cn/org/other --hub ollama" in hint_of("org/other", Hub.MODELSCOPE, three)
    lay_huggingface(tmp_path / "hf", "org/model", commits=[MAIN])
    for host in ("hf.co", "huggingface.co"):
        assert hint_of(f"{host}/org/model:Q8_0", Hub.OLLAMA, three) == (
            "the Hugging Face cache has it as org/model: give org/model --hub huggingface"
        )
    assert "ollama pull" in hint_of("modelscope.cn/org/model", Hub.OLLAMA, three)
    lay_huggingface(tmp_path / "hf", "gpt2", commits=[MAIN])
    for name in ("gpt2", "gpt2:latest", "library/gpt2"):
        assert hint_of(name, Hub.OLLAMA, three).endswith("give gpt2 --hub huggingface")


def test_a_cache_that_was_given_as_that_of_another_hub(
    tmp_path: Path, three: dict[str, str]
) -> None:
    lay_modelscope(tmp_path / "given" / "models" / "org" / "name")
    found = hint_of("org/name", Hub.HUGGINGFACE, three, tmp_path / "given")
    assert found == "the ModelScope cache has it: give org/name --hub modelscope"
    lay_modelscope(tmp_path / "ms" / "models" / "org" / "other")
    found = hint_of("org/other", Hub.HUGGINGFACE, three, tmp_path / "given")
    assert found.endswith("give org/other --hub modelscope, without --cache-dir")


def test_another_hubs_cache_that_cannot_be_read_is_no_help(
    tmp_path: Path, three: dict[str, str], unprivileged: Unprivileged
) -> None:
    lay_modelscope(tmp_path / "ms" / "models" / "org--name" / "snapshots" / "master")
    (tmp_path / "ms" / "models").chmod(0o700)
    with unprivileged():
        assert "hf download org/name" in hint_of("org/name", Hub.HUGGINGFACE, three)
    assert "--hub modelscope" in hint_of("org/name", Hub.HUGGINGFACE, three)


# Arbitrary refs and revisions

TEXTS = st.one_of(
    st.text(max_size=50),
    st.text("./~ma0bcdef\0\n", max_size=12),
    st.sampled_from([MAIN, OLDER, MAIN[:4], "main", "refs/pr/1", "../refs/main", "\ud800"]),
    st.text(min_size=250, max_size=5_000),
)
CONTENTS = st.one_of(
    st.binary(max_size=100),
    st.sampled_from([MAIN.encode(), MAIN.encode() + b"\n", OLDER.encode(), *HOSTILE_REFS]),
)


@settings(deadline=None)
@given(
    content=CONTENTS,
    revision=st.none() | TEXTS,
    hub=st.sampled_from([Hub.HUGGINGFACE, Hub.MODELSCOPE]),
)
def test_never_leaves_the_repo_folder(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, revision: str | None, hub: Hub
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    repo = lay_huggingface(cache, refs={"main": content, "refs/pr/1": content}, commits=[MAIN])
    lay_modelscope(cache / "models" / "org--name" / "snapshots" / "main")
    lay_modelscope(cache / "outside")
    (cache / "models--other--name").mkdir()
    folder = repo if hub is Hub.HUGGINGFACE else cache / "models" / "org--name"
    try:
        found = find(cache, revision=revision, hub=hub)
    except CheckpointError:
        refusal(cache, revision=revision, hub=hub)
    else:
        assert os.path.dirname(found.path) == os.path.join(folder, "snapshots")
        assert os.path.realpath(found.path) == found.path
        assert os.path.isdir(found.path)


PARTS = ["main", "v1.0", "refs", "pr", "1", "branch", "x", "..", ".", MAIN, OLDER[:8], ""]


@settings(deadline=None)
@given(revision=st.lists(st.sampled_from(PARTS), min_size=1, max_size=4).map("/".join))
def test_finds_whatever_huggingface_hub_finds(written: Path, revision: str) -> None:
    cache = written / "links"
    try:
        expected = oracle(cache, revision=revision)
    except (LocalEntryNotFoundError, OSError):
        return
    # It also reads `refs/./main` and `refs//main`, which are no revisions.
    if {"", ".", ".."}.intersection(revision.split("/")):
        refusal(cache, revision=revision)
    else:
        assert find(cache, revision=revision).path == expected
