"""Parts by tensor, with the real command: what is read, what is proven, what a loader finds."""

import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from safetensors.numpy import save_file

from prefetch_cli.linux import mounts
from tests.conftest import MIB
from tests.helpers import oracle
from tests.helpers.command import ROOT, environment, refused, run
from tests.helpers.oracle import about
from tests.helpers.passthrough import mounted, reads

LAYERS = 8
EXPERTS = 4
# What the kernel reads ahead behind each part: twice 128 KiB, which we double.
AHEAD = 512 * 1024
LOAD = """
import re, sys
from safetensors import safe_open
first, behind, *paths = sys.argv[1:]
total = 0
for path in paths:
    with safe_open(path, framework="numpy") as file:
        for name in file.keys():
            layer = re.search(r"layers\\.(\\d+)\\.", name)
            if layer is None or int(first) <= int(layer[1]) < int(behind):
                total += file.get_slice(name)[:].nbytes
print(total)
"""


class Tensor(NamedTuple):
    """A tensor of the model."""

    file: str  # its name
    name: str
    offset: int
    length: int

    @property
    def layer(self) -> int | None:
        """The number in its name."""
        found = re.search(r"layers\.(\d+)\.", self.name)
        return None if found is None else int(found[1])


class Model(NamedTuple):
    """A model on disk, and where its tensors lie."""

    folder: Path
    tensors: list[Tensor]

    @property
    def weights(self) -> list[str]:
        """The paths of its weight files."""
        return sorted({str(self.folder / one.file) for one in self.tensors})

    def bytes_of(self, *layers: int | None) -> int:
        """Return the size of the tensors of these layers; None: of those without."""
        return sum(one.length for one in self.tensors if one.layer in layers)

    def resident(self, *layers: int | None) -> int:
        """Return how many bytes of these tensors are in pages that mincore reports."""
        return sum(
            oracle.resident_within(str(self.folder / one.file), one.offset, one.length)
            for one in self.tensors
            if one.layer in layers
        )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model of eight layers of 4 MiB in two files, each with layers of both halves."""
    folder = tmp_path_factory.mktemp("parts") / "model"
    folder.mkdir()
    if mounts.inspect([str(folder)])[0].in_memory:
        pytest.skip("needs a temporary directory on a disk, found one in memory")
    (folder / "config.json").write_text(
        json.dumps({"num_hidden_layers": LAYERS, "num_experts": EXPERTS})
    )
    random = np.random.Generator(np.random.SFC64(1))
    for number in range(2):
        tensors = {f"model.norm{number}.weight": random.bytes(70_001)}
        for layer in range(number, LAYERS, 2):
            before = f"model.layers.{layer}"
            tensors[f"{before}.self_attn.qkv_proj.weight"] = random.bytes(2 * MIB + 11)
            for expert in range(EXPERTS):
                tensors[f"{before}.mlp.experts.{expert}.w1"] = random.bytes(MIB // 2)
        arrays = {name: np.frombuffer(data, dtype=np.uint8) for name, data in tensors.items()}
        save_file(arrays, str(folder / f"model-{number + 1:05}-of-00002.safetensors"))
    return Model(folder, list(placed(folder)))


def placed(folder: Path) -> Iterator[Tensor]:
    for path in sorted(folder.glob("*.safetensors")):
        content = path.read_bytes()
        (length,) = struct.unpack_from("<Q", content)
        for name, entry in json.loads(content[8 : 8 + length]).items():
            start, end = entry["data_offsets"]
            yield Tensor(path.name, name, 8 + length + start, end - start)


@pytest.fixture
def cold(model: Model) -> Model:
    oracle.make_cold([*model.weights, str(model.folder / "config.json")])
    return model


@pytest.fixture
def far(cold: Model, tmp_path: Path) -> Iterator[tuple[Model, Path]]:
    """The model on a mount that counts as network, and the log of what was read there."""
    point, log = tmp_path / "mount", tmp_path / "log"
    point.mkdir()
    log.touch()
    options = ("--keep-cache", "--subtype", "juicefs", "--log", str(log))
    try:
        with mounted(str(cold.folder), str(point), *options):
            yield Model(point, cold.tensors), log
    except PermissionError as error:
        pytest.skip(f"needs the right to mount FUSE: {error}")


def asked(log: Path) -> list[tuple[str, int, int]]:
    """Return the file, offset and end of each read of a mount since the last call."""
    found = [
        (os.path.basename(one.name), one.offset, one.offset + one.size_bytes)
        for one in reads(str(log))
    ]
    log.write_bytes(b"")
    return found


def asked_within(ranges: Sequence[tuple[str, int, int]], tensor: Tensor) -> int:
    """Return how many bytes of a tensor these reads have, each once."""
    pages = np.zeros(tensor.length, dtype=bool)
    for file, start, end in ranges:
        if file == tensor.file:
            pages[max(0, start - tensor.offset) : max(0, end - tensor.offset)] = True
    return int(pages.sum())


def load(model: Model, first: int, behind: int) -> int:
    """Return how many bytes a lazy loader reads of these layers, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(first), str(behind), *model.weights],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(),
    )
    return int(done.stdout)


def test_two_stages_read_disjoint_layers_and_all_bytes_together(far: tuple[Model, Path]) -> None:
    model, log = far
    for stage, mine, others in ((0, range(4), range(4, 8)), (1, range(4, 8), range(4))):
        done = run("--json", "--stage", f"{stage}/2", str(model.folder))
        assert done.code == 0, done
        ranges = asked(log)
        document = done.document
        assert document["decision"]["reason"] == "network-fits"
        parts = 0
        for tensor in model.tensors:
            got = asked_within(ranges, tensor)
            if stage == 0 and tensor.layer in (None, *mine):
                assert got == tensor.length, tensor
            elif tensor.layer in mine:
                assert got >= tensor.length - 2 * 4096 - AHEAD, tensor  # read ahead by stage 0
            elif tensor.layer in others and stage == 0:
                assert 1 <= got <= AHEAD, tensor
                parts += got > 2 * 4096  # else its first page, and the end of its last one
        assert parts <= 4
        part = model.bytes_of(None, *mine) + 4096 * len(model.tensors)
        assert document["share"]["bytes"] == pytest.approx(part, rel=0.01)
        [source] = document["checkpoint"]["sources"]
        assert source["part"]["layers_read"] == {"start": mine[0], "end": mine[-1] + 1, "total": 8}
        assert document["checkpoint"]["total_bytes"] == document["share"]["bytes"]
        assert document["result"]["complete"] is True
        # The other stage's files brought in what lies at their edges.
        assert document["result"]["bytes_read"] <= document["share"]["bytes"]
        check = run("--check", "--min-resident", "99", "--stage", f"{stage}/2", str(model.folder))
        assert check.code == 0
    assert run("--check", "--min-resident", "99", str(model.folder)).code == 0


def test_a_lazy_loader_of_the_stage_reads_nothing_any_more(far: tuple[Model, Path]) -> None:
    model, log = far
    assert run("--stage", "1/2", str(model.folder)).code == 0
    first = asked(log)
    assert sum(end - start for _, start, end in first) < 1.2 * model.bytes_of(None, 4, 5, 6, 7)
    assert load(model, 4, 8) == model.bytes_of(None, 4, 5, 6, 7)
    assert asked(log) == []
    # The log does see a loader: of the other stage.
    assert load(model, 0, 1) > 0
    assert sum(end - start for _, start, end in asked(log)) >= model.bytes_of(0) - 2 * AHEAD


def test_a_stage_is_in_the_page_cache_before_it_is_loaded(cold: Model) -> None:
    done = run("--json", "--force", "--stage", "0/2", str(cold.folder))
    assert done.code == 0
    part = cold.bytes_of(None, 0, 1, 2, 3)
    assert cold.resident(None, 0, 1, 2, 3) == about(part)
    residency = done.document["residency"]
    assert residency["after_bytes"] == about(residency["total_bytes"])
    assert residency["total_bytes"] == pytest.approx(part, rel=0.01)


def test_experts_and_globs(cold: Model) -> None:
    document = run("--json", "-n", "--experts", "1/2", str(cold.folder)).document
    [source] = document["checkpoint"]["sources"]
    assert source["part"]["experts_read"] == {"start": 2, "end": 4, "total": 4}
    assert (source["part"]["tensors_read"], source["part"]["total_tensors"]) == (26, 42)
    done = run("--tensors", "*.experts.*", "--tensors", "!*.layers.0.*", "-n", str(cold.folder))
    assert done.lines["part"].startswith("tensors *.experts.* !*.layers.0.*; 28 of 42 tensors; ")
    done = run("-n", "--stage", "1-2/4", "--experts", "1-2/3", str(cold.folder))
    assert done.lines["part"].startswith(
        "stage 1-2/4, layers 2 to 5 of 8; experts 1-2/3, experts 2 to 3 of 4; "
    )
    env = {"PREFETCH_CLI_STAGE": "1/4", "PREFETCH_CLI_EXPERTS": "0-0"}
    done = run("-n", str(cold.folder), env=env)
    assert done.lines["part"].startswith(
        "stage 1/4, layers 2 to 3 of 8; experts 0-0, experts 0 to 0 of 4; 6 of 42 tensors; "
    )


def test_the_experts_of_a_rank(far: tuple[Model, Path]) -> None:
    model, log = far
    done = run("--json", "--experts", "1/2", str(model.folder))
    assert done.code == 0
    [source] = done.document["checkpoint"]["sources"]
    assert source["part"]["whole_bytes"] > done.document["checkpoint"]["total_bytes"] + 7 * MIB
    ranges = asked(log)
    for tensor in model.tensors:
        got = asked_within(ranges, tensor)
        if ".experts." not in tensor.name or re.search(r"experts\.[23]\.", tensor.name):
            assert got == tensor.length, tensor
        elif ".experts.0." in tensor.name:
            assert got <= AHEAD, tensor


def test_a_model_that_does_not_fit_may_fit_as_a_stage(far: tuple[Model, Path]) -> None:
    model, _ = far
    limit = str(model.bytes_of(None, 0, 1, 2, 3) + MIB)
    whole = run("--json", "--max-bytes", limit, str(model.folder)).document
    assert whole["decision"]["reason"] == "network-too-big"
    stage = run("--json", "--max-bytes", limit, "--stage", "0/2", str(model.folder)).document
    assert (stage["decision"]["reason"], stage["exit_code"]) == ("network-fits", 0)
    assert stage["residency"]["after_bytes"] == about(stage["residency"]["total_bytes"])


@pytest.mark.parametrize("limit", [3 * MIB, 9 * MIB + 5])
def test_a_limit_on_a_part_is_never_passed(cold: Model, limit: int) -> None:
    done = run("--json", "--force", "--max-bytes", str(limit), "--stage", "1/2", str(cold.folder))
    document = done.document
    assert document["decision"]["reason"] == "forced-too-big"
    assert limit - 2 * 4096 <= document["result"]["bytes_read"] <= limit
    files = [*cold.weights, str(cold.folder / "config.json")]
    assert oracle.resident_bytes(files) <= limit + len(files) * 4096
    # The first page of each is needed, too.
    assert cold.resident(0, 1, 2, 3) <= (4 + len(cold.tensors) // 2) * 4096


def test_check_and_evict_are_about_the_part(cold: Model) -> None:
    folder = str(cold.folder)
    assert run("--force", folder).code == 0
    done = run("--json", "--evict", "--stage", "0/2", folder)
    assert (done.code, done.document["result"]["complete"]) == (0, True)
    assert cold.resident(0, 1, 2, 3) <= 0.01 * cold.bytes_of(0, 1, 2, 3) + 4 * 4096
    # A folio of 2 MiB that has some of the part goes as a whole, at each of four edges at most.
    assert cold.resident(4, 5, 6, 7) >= cold.bytes_of(4, 5, 6, 7) - 4 * 2 * MIB
    assert run("--check", "--min-resident", "90", "--stage", "0/2", folder).code == 4
    assert run("--force", "--stage", "1/2", folder).code == 0
    assert run("--check", "--min-resident", "99", "--tensors", "*s.[4567].*", folder).code == 0


@pytest.mark.parametrize("split", ["files", "bytes", "auto"])
def test_ranks_share_a_part(cold: Model, split: str) -> None:
    flags = ["--json", "--force", "--stage", "0/2", "--split", split, "--block-size", "1MiB"]
    shares = 0
    for rank in range(3):
        done = run(*flags, "--rank", str(rank), "--world-size", "3", str(cold.folder))
        assert done.code == 0
        shares += done.document["share"]["bytes"]
        assert done.document["share"]["bytes"] < done.document["checkpoint"]["total_bytes"]
    assert shares == done.document["checkpoint"]["total_bytes"]
    part = cold.bytes_of(None, 0, 1, 2, 3)
    assert cold.resident(None, 0, 1, 2, 3) == about(part)


def test_a_list_has_what_the_part_has_of_each_file(cold: Model) -> None:
    document = run("--list", "--json", "--stage", "0/2", str(cold.folder)).document
    sizes = {os.path.basename(one["path"]): one["bytes"] for one in document["files"]}
    assert sum(sizes.values()) == document["checkpoint"]["total_bytes"]
    assert set(sizes) == {"config.json", *map(os.path.basename, cold.weights)}
    assert all(0 < sizes[os.path.basename(path)] < os.path.getsize(path) for path in cold.weights)


def test_what_is_kept_and_locked_is_the_part(cold: Model) -> None:
    flags = ["--json", "--force", "--stage", "1/2", "--keep", "1s"]
    done = run(*flags, str(cold.folder))
    assert done.code == 0
    assert done.document["keep"]["held_bytes"] == about(done.document["share"]["bytes"])
    done = run(*flags, "--lock", str(cold.folder))
    assert done.code == 0, done
    assert done.document["keep"]["locked_bytes"] == about(done.document["share"]["bytes"])


def test_beside_a_command(cold: Model) -> None:
    done = run("--force", "--stage", "0/2", str(cold.folder), "--", "sleep", "2")
    assert done.code == 0
    assert "stage 0/2, layers 0 to 3 of 8" in done.errors
    assert cold.resident(None, 0, 1, 2, 3) == about(cold.bytes_of(None, 0, 1, 2, 3))


def test_a_draft_model_is_read_for_all_stages(cold: Model, tmp_path: Path) -> None:
    save_file(
        {f"layers.{layer}.w": np.ones(5000, dtype=np.uint8) for layer in range(2)},
        str(tmp_path / "model.safetensors"),
    )
    size = os.path.getsize(tmp_path / "model.safetensors")
    done = run("--json", "-n", "--stage", "0/2", str(cold.folder), str(tmp_path))
    target, draft = done.document["checkpoint"]["sources"]
    assert target["part"]["layers_read"]["end"] == 4
    assert draft["part"] is None
    assert done.document["warnings"] == [
        f"{tmp_path}: read for all stages and experts: --stage and --experts are about the first "
        "CHECKPOINT"
    ]
    only = run("--json", "-n", "--stage", "0/2", str(cold.folder)).document["checkpoint"]
    assert done.document["checkpoint"]["total_bytes"] == only["total_bytes"] + size
    # Names are those of any model.
    done = run("--json", "-n", "--tensors", "*layers.0.*", str(cold.folder), str(tmp_path))
    parts = [one["part"]["tensors_read"] for one in done.document["checkpoint"]["sources"]]
    assert (parts, done.document["warnings"]) == ([5, 1], [])


@pytest.fixture
def vllm(tmp_path: Path) -> str:
    """A server of that name, which only waits a little."""
    path = tmp_path / "bin" / "vllm"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\nsleep 2\n")
    path.chmod(0o755)
    return str(path)


SERVE = ("-tp", "8", "-pp", "2", "--nnodes", "2", "--node-rank", "1")


def test_what_command_gives_this_node_is_read_and_said(cold: Model, vllm: str) -> None:
    done = run("--force", "--", vllm, "serve", str(cold.folder), *SERVE)
    assert done.code == 0
    assert "stage 1/2, layers 4 to 7 of 8" in done.errors
    assert "from COMMAND: --stage all reads all" in done.errors
    assert cold.resident(None, 4, 5, 6, 7) == about(cold.bytes_of(None, 4, 5, 6, 7))
    assert cold.resident(0) <= 0.5 * cold.bytes_of(0)


@pytest.mark.parametrize("flags", [["--stage", "all"], ["--verify"], ["--tensors", "*"]])
def test_what_a_user_gives_undoes_it(cold: Model, vllm: str, flags: list[str]) -> None:
    done = run("--force", *flags, str(cold.folder), "--", vllm, "serve", str(cold.folder), *SERVE)
    assert done.code == 0
    assert "from COMMAND: --stage" not in done.errors
    layers = range(LAYERS)
    assert cold.resident(None, *layers) == about(cold.bytes_of(None, *layers))


# What a user gets wrong, and what cannot be parted


def test_a_digest_is_of_a_whole_file(model: Model) -> None:
    for flags in (["--stage", "0/2"], ["--experts", "0-1"], ["--tensors", "*"]):
        line = refused(*flags, "--verify", str(model.folder))
        assert line == f"expected {flags[0]} or --verify, found both; give one of them"


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        *(
            (["--stage", text], f"expected I/N with I below N, as in 0/2, or all, found '{text}'")
            for text in ("2/2", "1", "-1/2", "0/0", "1-0/4", "0-4/4", "0-1", "ALL", "0/2/3", "²/4")
        ),
        *(
            (
                ["--experts", text],
                "expected A-B with A up to B, as in 0-7, I/N with I below N, as in 0/2, or all, "
                f"found '{text}'",
            )
            for text in ("3", "2/2", "7-0", "0-", "-7", "a-b", "0-7/4", "0.5")
        ),
        (["--tensors", "!"], "expected a glob, as in '*.mlp.*', found '!'"),
        (["--tensors", ""], "expected a glob, as in '*.mlp.*', found ''"),
    ],
)
def test_a_part_that_is_none(model: Model, flags: list[str], found: str) -> None:
    assert f"{flags[0]}: {found}" in refused(*flags, str(model.folder))


def test_no_such_tensor(model: Model) -> None:
    line = refused("--tensors", "*.q_proj.*", str(model.folder), code=3)
    assert "leave in, found none of 42 tensors; check --tensors" in line


def test_a_header_that_lies(tmp_path: Path) -> None:
    header = json.dumps(
        {
            f"layers.{layer}.w": {"dtype": "U8", "shape": [8], "data_offsets": [start, start + 8]}
            for layer, start in ((0, 0), (1, 4))
        }
    ).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(12))
    line = refused("--stage", "0/2", str(path), code=3)
    assert "its header is wrong: expected 'layers.1.w' at offset 8" in line
    assert line.endswith("leave out --tensors, --stage and --experts to read it whole")
    assert run("-n", str(path)).code == 0


def test_files_that_cannot_be_parted_are_read_whole(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(os.urandom(MIB))
    done = run("--json", "-n", "--stage", "0/2", str(tmp_path))
    assert done.code == 0
    assert done.document["checkpoint"]["total_bytes"] == MIB
    assert [one for one in done.document["warnings"] if "read whole" in one] == [
        f"{tmp_path}: pytorch_model.bin: only whole safetensors and GGUF files say where their "
        "tensors lie: read whole"
    ]


def test_a_variable_that_the_server_refuses(model: Model) -> None:
    env = {"VLLM_PP_LAYER_PARTITION": "4,5"}
    line = refused("--stage", "0/2", str(model.folder), env=env)
    assert line.startswith("VLLM_PP_LAYER_PARTITION: expected 2 numbers of layers, 8 in all")
    env = {"VLLM_PP_LAYER_PARTITION": "7,1"}
    done = run("-n", "--stage", "1/2", str(model.folder), env=env)
    assert done.lines["part"].startswith("stage 1/2, layers 7 to 7 of 8; ")
    done = run("-n", "--server", "sglang", "--stage", "1/3", str(model.folder))
    assert done.lines["part"].startswith("stage 1/3, layers 2 to 4 of 8; ")
    done = run("-n", "--stage", "1/3", str(model.folder))
    assert done.lines["part"].startswith("stage 1/3, layers 3 to 5 of 8; ")
