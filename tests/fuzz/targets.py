"""The fuzz targets: each with its seeds, and with checks of what must hold for any input."""

import fnmatch
import json
import os
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from prefetch_cli.base.amounts import parse_amount, parse_duration, parse_size
from prefetch_cli.base.errors import PrefetchError
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.text import printable
from prefetch_cli.base.words import Hub, LoadFormat, Server
from prefetch_cli.checkpoint import (
    blobs,
    checksums,
    companions,
    gguf,
    index,
    layouts,
    safetensors,
    selection,
)
from prefetch_cli.checkpoint.examine import examine, gguf_type
from prefetch_cli.checkpoint.excerpt import excerpt
from prefetch_cli.checkpoint.files import File
from prefetch_cli.checkpoint.manifest import Terms
from prefetch_cli.checkpoint.placement import Needs, Ranks
from prefetch_cli.checkpoint.redirect import redirected
from prefetch_cli.checkpoint.resolve import resolve
from prefetch_cli.checkpoint.selection import Filters
from prefetch_cli.checkpoint.servers import rules_of
from prefetch_cli.hubs import hub
from prefetch_cli.libraries import distributions
from prefetch_cli.libraries.interpreters import Interpreter
from prefetch_cli.linux import advice, lustre, memory, mounts, readahead, unified
from prefetch_cli.linux.blockdev import Kind, device_below
from prefetch_cli.plan import ranks
from prefetch_cli.run.from_file import FromFile, requested
from tests.helpers.requests import request

Run = Callable[[bytes], None]

# An ONNX model with one tensor in w.bin: graph, initializer, external_data, key and value.
_ONNX = b"\x08\x08:\x19*\x17j\x15\n\x08location\x12\x09w.weights"
_INDEX = json.dumps(
    {
        "metadata": {"total_size": 4_000_000_000},
        "weight_map": {
            f"model.layers.{layer}.mlp.weight": f"model-{layer % 3 + 1:05}-of-00003.safetensors"
            for layer in range(12)
        },
    },
    indent=2,
).encode()
_HEADER_TEXT = json.dumps(
    {
        "__metadata__": {"format": "pt"},
        **{
            f"w{number}": {
                "dtype": "F16",
                "shape": [4, 4],
                "data_offsets": [32 * number, 32 * number + 32],
            }
            for number in range(8)
        },
    }
).encode()
_HEADER = len(_HEADER_TEXT).to_bytes(8, "little") + _HEADER_TEXT + bytes(256)
_GGUF = b"".join(
    (
        b"GGUF" + struct.pack("<IQQ", 3, 1, 3),
        struct.pack("<Q", 12) + b"general.type" + struct.pack("<IQ", 8, 6) + b"mmproj",
        struct.pack("<Q", 17) + b"general.alignment" + struct.pack("<II", 4, 64),
        struct.pack("<Q", 1) + b"t" + struct.pack("<IIQ", 9, 8, 2),
        *(struct.pack("<Q", 3) + b"abc" for _ in range(2)),
        struct.pack("<Q", 1) + b"w" + struct.pack("<IQQIQ", 2, 32, 2, 8, 0),
        bytes(256),
    )
)
_OLLAMA = json.dumps(
    {
        "config": {"digest": f"sha256:{0:064x}", "size": 10},
        "layers": [
            {
                "mediaType": f"application/vnd.ollama.image.{kind}",
                "digest": f"sha256:{number:064x}",
                "size": 100 * number,
            }
            for number, kind in enumerate(("model", "projector", "tensor; name=a", "params"))
        ],
        "manifests": [{"runner": "mlx", "digest": f"sha256:{1:064x}", "layers": []}],
    }
).encode()
_MOUNTS = (
    b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
    b"30 22 0:26 / /mnt/a\\040b ro,noatime - nfs4 server:/export rw,vers=4.2,rsize=1048576\n"
    b"31 22 0:27 / /mnt/o rw - overlay overlay rw,lowerdir=/l1:/l2,upperdir=/u,workdir=/w\n"
    b"32 22 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    b"33 22 0:29 /job /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    b"34 22 0:30 / /mnt/f rw - fuse.sshfs host: rw,user_id=0\n"
    b"35 22 0:31 / /mnt/b rw - fuse /mnt/a rw,user_id=0\n"
    b"36 22 0:32 / /mnt/g rw - fuse.gocryptfs /mnt/c rw,user_id=0\n"
    b"37 22 0:33 / /mnt/t rw - btrfs /dev/mapper/vg-m rw,subvol=/\n"
)
_MOUNTSTATS = (
    b"device fs1:/models mounted on /m with fstype nfs4 statvers=1.1\n"
    b"\t     GETATTR: 8 10 0 2020 2440 0 130 131 0\n"
    b"\t      LOOKUP: 9 9 0 2020 2440 0 130 131 0\n"
)
_LAYOUT = (
    struct.pack("<IIIHHHBB4xQ", 0x0BD60BD0, 128, 1, 0, 1, 0, 0, 0, 0)
    + struct.pack("<IIQQIIIQI", 1, 0x10, 0, 1 << 30, 80, 48, 0, 0, 0)
    + struct.pack("<II16sIHH", 0x0BD10BD0, 1, b"", 1 << 20, 1, 0)
)


@dataclass(frozen=True)
class Target:
    """One way for input to get in."""

    name: str
    seeds: tuple[bytes, ...]
    open: Callable[[Path], Run]  # given a folder of its own


def targets() -> list[Target]:
    """Return all targets."""
    return [
        Target("index", (_INDEX, b'{"weight_map":{"a":"b.bin"}}'), _index),
        Target("list", (b"# models\n\n /m/a b \n-x\ns3://b/m\n", b"/m/a\0\0#\0org/n\0"), _list),
        Target(
            "layout",
            (
                b'{"_class_name":"X","unet":["diffusers","U"],"vae":[null,null]}',
                b'[{"path":"1_Pooling","type":"a.Pooling"},{"path":"","type":"a.Transformer"}]',
            ),
            _layout,
        ),
        Target(
            "header",
            (_HEADER, b"version https://git-lfs.github.com/spec/v1\n"),
            partial(_header, name="model.safetensors"),
        ),
        Target("tensors", (_HEADER,), _tensors),
        Target("part", (_HEADER,), partial(_part, name="model.safetensors")),
        Target("part of gguf", (_GGUF, b"GGUF\3\0\0\0"), partial(_part, name="model.gguf")),
        Target(
            "checksums",
            (b"0" * 64 + b"  a\n", b"\\" + b"f" * 64 + b" *a\\nb\r\n# x\n", b"a" * 64 + b"  b\0"),
            _checksums,
        ),
        Target("gguf", (_GGUF, b"GGUF\3\0\0\0"), partial(_header, name="model.gguf")),
        Target("zip", (b"PK\3\4PK\5\6" + bytes(18),), partial(_header, name="model.pt")),
        Target("onnx", (_ONNX, b"__0_0.distcp__11_2.distcp"), _companions),
        Target("ref", (b"0123456789abcdef0123456789abcdef01234567", b"main\n", b"refs/pr/1"), _ref),
        Target("ollama", (_OLLAMA,), _ollama),
        Target("redirects", (b'{"org/name": "/m"}', b"org/name /m\na b c\n"), _redirects),
        Target("mounts", (_MOUNTS,), _mounts),
        Target("devices", (b"/dev/shm/i\n", b"tcp\n", b"EphemeralDisk   \n", b"1\n"), _devices),
        Target("unified", (b"nvidia,tegra234\0", b"0x10de\n", b"NVIDIA_DGX_Spark\n"), _unified),
        Target(
            "advice",
            (_MOUNTSTATS, _LAYOUT, b"users: 5\nmax_cached_mb: 7776\n", b"64.0\n"),
            _advice,
        ),
        Target("cgroups", (b"4:memory:/job/step\n0::/job\n", b"0::/../..\n"), _cgroups),
        Target("limit", (b"max\n", b"9223372036854771712\n", b"1048576"), _limit),
        Target("ranks", (b"3", b"8", b"2(x3),1", b"4294967295", b"0"), _ranks),
        Target("sizes", (b"16MiB", b"1.5G", b"90%", b"1h30m", b"01:30:00", b"-1"), _sizes),
        Target("globs", (b"*.bin", b"a*a*a*a*a*b", b"[!a-z]?*", b"**/*", b"[[]x]"), _globs),
        Target("names", (b"model-00001-of-00002.gguf", b"a.safetensors", b"x9999.bin"), _names),
        Target(
            "record",
            (
                b"pkg/__init__.py,sha256=x,12\npkg/x.so,,\n../../../bin/run,,\n",
                b"Name: pkg\nRequires-Dist: numpy>=1.0; python_version>'3'\n",
            ),
            _record,
        ),
        Target("folder", (_INDEX, _HEADER, b"model.safetensors"), _folder),
    ]


def _part(folder: Path, name: str) -> Run:
    path = folder / name
    needs = Needs(("*", "!*.9.*"), Ranks(1, 1, 2), Ranks(0, 0, 2))

    def run(content: bytes) -> None:
        path.write_bytes(content)
        size = len(content)
        file = File(str(path), str(path), size, weight=True, device=1, inode=1)
        [[found], _, _] = excerpt([file], (), str(folder), needs, None, {}, Monitor(), 1)
        end = 0
        for part in found.ranges:
            assert part.offset >= end
            assert part.length >= 0
            end = part.offset + part.length
        assert end <= size

    return run


def _index(_folder: Path) -> Run:
    def run(content: bytes) -> None:
        found = index.parse_index("/m/x.index.json", [content])
        for name in found.shards:
            assert _is_below("/m", name), name
        assert found.total_size_bytes is None or 0 <= found.total_size_bytes < 2**63

    return run


def _layout(_folder: Path) -> Run:
    def run(content: bytes) -> None:
        layouts.is_old_router(content)
        for layout in (*layouts.OF_WHOLE_MODELS, layouts.ROUTER_LAYOUT):
            try:
                found = layouts.components(f"/m/{layout}", content)
            except PrefetchError:
                continue
            for one in found:
                assert not one.folder or _is_below("/m", one.folder), one

    return run


def _companions(_folder: Path) -> Run:
    def run(content: bytes) -> None:
        def read(offset: int, size_bytes: int) -> bytes:
            return content[offset : offset + size_bytes]

        companions.external_data(len(content), read)
        for name in companions.shards_in(len(content), read):
            assert _is_below("/m", name), name

    return run


def _header(folder: Path, name: str) -> Run:
    path = folder / name

    def run(content: bytes) -> None:
        path.write_bytes(content)
        before = os.stat(path)
        examine(str(path), weight=True)
        gguf_type(str(path))
        after = os.stat(path)
        assert (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)

    return run


def _tensors(folder: Path) -> Run:
    path = folder / "x.safetensors"

    def run(content: bytes) -> None:
        path.write_bytes(content)
        wrong = safetensors.fault(str(path), len(content))
        assert wrong is None or (printable(wrong) == wrong and len(wrong) < 1000)

    return run


def _checksums(folder: Path) -> Run:
    path = folder / "list"

    def run(content: bytes) -> None:
        path.write_bytes(content)
        try:
            found = checksums.read(str(path))
        except PrefetchError:
            return
        assert found.lines
        assert found.match((), [str(folder)])[1] == len(found.lines)

    return run


def _ref(folder: Path) -> Run:
    cache = folder / "hub"
    repo = cache / "models--org--name"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (repo / "refs").mkdir(parents=True)
    (repo / "snapshots" / commit).mkdir(parents=True)

    def run(content: bytes) -> None:
        (repo / "refs" / "main").write_bytes(content)
        for revision in (None, os.fsdecode(content[:60])):
            try:
                found = hub.find_snapshot(
                    "org/name",
                    hub=Hub.HUGGINGFACE,
                    revision=revision,
                    cache_dir=str(cache),
                    environ={},
                )
            except PrefetchError:
                continue
            assert os.path.realpath(found.path).startswith(f"{os.path.realpath(repo)}/snapshots/")

    return run


def _ollama(folder: Path) -> Run:
    path = folder / "manifests" / "host" / "user" / "model" / "tag"
    path.parent.mkdir(parents=True)
    terms = Terms("model:tag", LoadFormat.AUTO, rules_of(Server.OLLAMA), True, Filters())

    def run(content: bytes) -> None:
        path.write_bytes(content)
        found = blobs.of_manifest(str(path), terms)
        for each in (*found.weights, *found.folders[0].side, *found.sizes):
            assert os.path.dirname(os.path.normpath(each)) == str(folder / "blobs")
        assert all(text.isprintable() for text in found.warnings)
        assert all(0 <= size_bytes < 2**63 for size_bytes in found.sizes.values())

    return run


def _redirects(folder: Path) -> Run:
    path = folder / "redirects"

    def run(content: bytes) -> None:
        path.write_bytes(content)
        environ = {"VLLM_MODEL_REDIRECT_PATH": str(path)}
        assert redirected("org/name", Server.VLLM, environ) != ""

    return run


def _mounts(_folder: Path) -> Run:
    def run(content: bytes) -> None:
        table = mounts.MountTable.parse(content)
        for path in ("/", "/mnt/a b/model", "/mnt/o/x", "/mnt/b/x", "/mnt/f/../x", "/nowhere"):
            found = table.of(path)
            assert found.type
            assert found.network == (found.network_type or found.network_device)
            readahead.read_step_bytes(found, sys_root="/nowhere")

    return run


def _devices(folder: Path) -> Run:
    block = folder / "devices/virtual/block"
    files = [
        block / "loop0/loop/backing_file",
        block / "loop0/loop/offset",
        block / "loop0/size",
        block / "dm-0/dm/name",
        block / "nvme0n1/queue/rotational",
        block / "nvme0n1/device/transport",
        block / "nvme0n1/device/model",
    ]
    for path in (*files, block / "dm-0/slaves/x", folder / "dev/block/x", folder / "class/block/x"):
        path.parent.mkdir(parents=True, exist_ok=True)
    for name in ("loop0", "nvme0n1"):
        (block / "dm-0/slaves" / name).symlink_to(f"../../{name}")
    (folder / "dev/block/254:0").symlink_to("../../devices/virtual/block/dm-0")
    (folder / "class/block/dm-0").symlink_to("../../devices/virtual/block/dm-0")

    def run(content: bytes) -> None:
        for path in files:
            path.write_bytes(content)
        source = os.fsdecode(b"/dev/" + content)
        for number in ("254:0", "0:40"):
            found = device_below(number, source, lambda _: Kind.UNKNOWN, str(folder))
            assert found is None or found.name in {"loop0", "nvme0n1"}

    return run


def _unified(folder: Path) -> Run:
    names = ("vendor", "device", "class", "mem_info_vram_total", "mem_info_gtt_total")
    files = [
        folder / "proc/device-tree/compatible",
        folder / "proc/device-tree/model",
        folder / "sys/class/dmi/id/product_name",
        folder / "sys/devices/soc0/family",
        *(folder / "sys/bus/pci/devices/0" / name for name in names),
    ]
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)

    def run(content: bytes) -> None:
        for path in files:
            path.write_bytes(content)
        assert unified.shared_with_gpu(str(folder)) != ""

    return run


def _advice(folder: Path) -> Run:
    parameters = folder / "sys/fs/lustre/llite/m-0"
    files = [
        folder / "proc/self/mountstats",
        parameters / "max_cached_mb",
        parameters / "max_read_ahead_per_file_mb",
    ]
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
    kinds = ("nfs4 fs1:/models rw,rsize=4096", "lustre 10.0.0.1@tcp:/m rw")
    found = [mounts.MountTable.parse(f"1 0 0:9 / /m rw - {kind}").of("/m/x") for kind in kinds]

    def run(content: bytes) -> None:
        for path in files:
            path.write_bytes(content)
        count = lustre.parse_layout(content)
        assert count is None or 0 <= count <= 0xFFFF
        for one in found:
            most = lustre.max_cached_bytes(one, str(folder))
            assert most is None or most > 0
            assert all(advice.advise(one, [("/m/x", 1 << 40)], 1 << 24, str(folder)))

    return run


def _machine(folder: Path) -> Path:
    for name, content in (
        ("proc/meminfo", b"MemTotal: 16000000 kB\nMemAvailable: 8000000 kB\n"),
        ("proc/self/mountinfo", _MOUNTS),
        ("proc/self/cgroup", b"4:memory:/job/step\n0::/job\n"),
        ("sys/fs/cgroup/memory/job/step/memory.limit_in_bytes", b"1073741824"),
        ("sys/fs/cgroup/memory/job/step/memory.usage_in_bytes", b"4096"),
        ("sys/fs/cgroup/memory/job/step/memory.stat", b"total_inactive_file 0\n"),
        ("sys/fs/cgroup/memory.max", b"1073741824"),
        ("sys/fs/cgroup/memory.current", b"4096"),
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def _measured(root: Path) -> None:
    found = memory.measure(str(root))
    assert found.host_available_bytes >= found.available_bytes


def _cgroups(folder: Path) -> Run:
    root = _machine(folder)

    def run(content: bytes) -> None:
        (root / "proc/self/cgroup").write_bytes(content)
        _measured(root)

    return run


def _limit(folder: Path) -> Run:
    root = _machine(folder)
    names = ("limit_in_bytes", "usage_in_bytes", "stat")

    def run(content: bytes) -> None:
        for name in names:
            (root / f"sys/fs/cgroup/memory/job/step/memory.{name}").write_bytes(content)
        (root / "sys/fs/cgroup/memory.max").write_bytes(content)
        _measured(root)

    return run


def _ranks(_folder: Path) -> Run:
    names = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_STEP_ID", "SLURM_LOCALID", "SLURM_NODEID")

    def run(content: bytes) -> None:
        text = os.fsdecode(content.replace(b"\0", b""))
        environ = {name: text[place : place + 12] for place, name in enumerate(names)}
        environ["SLURM_STEP_TASKS_PER_NODE"] = text
        found = ranks.detect(environ)
        assert 0 <= found.rank < found.world_size
        assert found.warning is None or found.warning.isprintable()

    return run


def _sizes(_folder: Path) -> Run:
    def run(content: bytes) -> None:
        text = os.fsdecode(content)
        for parse in (parse_size, parse_amount, parse_duration):
            try:
                parse(text)
            except ValueError as error:
                assert printable(str(error)) == str(error)  # noqa: PT017

    return run


def _globs(_folder: Path) -> Run:
    def run(content: bytes) -> None:
        text = os.fsdecode(content)[:4096]  # no longer than a path
        filters = Filters(include=(text,), exclude=(text[::-1],))
        for path in ("a" * 200, "model-00001-of-00002.safetensors", text):
            filters.want(path)
        # fnmatch caches 32,768 patterns; no real run has so many.
        fnmatch._compile_pattern.cache_clear()  # type: ignore[attr-defined]
        re.purge()

    return run


def _names(_folder: Path) -> Run:
    def run(content: bytes) -> None:
        # No file system allows longer names.
        names = [os.fsdecode(name[:255]) for name in content.split(b"/") if name]
        for load_format in set(LoadFormat) - {LoadFormat.ALL}:
            try:
                for server in Server:
                    selection.select(
                        names,
                        load_format,
                        rules_of(server),
                        lambda _: True,
                        lambda _: None,
                        component=False,
                    )
            except PrefetchError as error:
                assert str(error).isprintable()  # noqa: PT017
        models = list(gguf.models(names).values())
        for name in models[:5]:
            gguf.parts(name)
            gguf.projector(names, name)
            label = gguf.quantisation(name)
            assert label is None or name in gguf.of_quantisation(models, label)
        gguf.llama_cpp_choice(models, names[0] if names else None)
        assert printable("".join(names)).isprintable()

    return run


def _record(folder: Path) -> Run:
    inside = folder / "site" / "pkg-1.0.dist-info"
    inside.mkdir(parents=True)
    interpreter = Interpreter("/usr/bin/python3", "cpython-311", (str(folder / "site"),))
    (inside / "METADATA").write_bytes(b"Name: pkg\nVersion: 1.0\n")

    def run(content: bytes) -> None:
        name = "METADATA" if content.startswith(b"Name") else "RECORD"
        (inside / name).write_bytes(content)
        for found in distributions.closure(["pkg"], interpreter, Monitor(), 1):
            assert all(os.path.isabs(path) for path in found.paths)
        (inside / "METADATA").write_bytes(b"Name: pkg\nVersion: 1.0\n")

    return run


def _list(folder: Path) -> Run:
    path = folder / "list"
    source = FromFile(str(path), None, None)

    def run(content: bytes) -> None:
        path.write_bytes(content)
        found = requested(request(folder), source, Monitor()).references[1:]
        names = [os.fsencode(one.argument) for one in found]
        assert all(name and name in content and name[:1] not in (b"#", b"-") for name in names)

    return run


def _folder(folder: Path) -> Run:
    root = folder / "model"
    outside = folder / "outside.safetensors"
    outside.write_bytes(_HEADER)

    def run(content: bytes) -> None:
        root.mkdir()
        try:
            for path, part in _laid_out(root, content):
                path.write_bytes(part)
            asked = request(root, allow_incomplete=True)
            found = resolve(asked, {}, Monitor(), 2)
            assert all(
                one.real_path.startswith(f"{os.path.realpath(root)}/") for one in found.files
            )
            assert all(text.isprintable() for text in found.warnings)
        finally:
            for path in sorted(root.rglob("*"), reverse=True):
                path.unlink()
            root.rmdir()

    return run


def _laid_out(root: Path, content: bytes) -> Iterator[tuple[Path, bytes]]:
    """Yield the files of a folder whose index, header and names are these bytes."""
    yield root / "model.safetensors.index.json", content
    yield root / "model-00001-of-00003.safetensors", content
    name = os.fsdecode(content[:40].replace(b"\0", b"").replace(b"/", b"")).strip(".")
    if name and len(os.fsencode(name)) < 200:
        yield root / f"{name}.safetensors", _HEADER


def _is_below(root: str, name: str) -> bool:
    return os.path.normpath(os.path.join(root, name)).startswith(f"{root}/")
