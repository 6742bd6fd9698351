"""A timed sample on real mounts, beside fincore; `tests.tools.truth` has the whole table.

What a page costs is measured, so it depends on the machine: what decides is whether the truth lies
in the interval, not how long anything took.
"""

import mmap
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.helpers import command, oracle, truth
from tests.helpers.passthrough import mounted
from tests.helpers.truth import FURTHEST_POINTS, PERCENTS, Run

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root, to mount and to become a user who owns nothing"
)
STRANGER = 65534
RUNS = 12  # a row
KEEPS = ("--keep-cache",)


@contextmanager
def files_on_fuse(*options: str) -> Iterator[list[str]]:
    """Yield the paths of the files, readable by all, on a FUSE file system."""
    with ExitStack() as stack:
        # Others may not enter pytest's own folders.
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="timed-")))
        source, point = folder / "source", folder / "mount"
        for one in (source, point):
            one.mkdir()
        folder.chmod(0o755)
        names = truth.write(str(source))
        try:
            stack.enter_context(mounted(str(source), str(point), "--allow-other", *options))
        except OSError as error:
            pytest.skip(f"needs the right to mount FUSE: {error}")
        yield [str(point / name) for name in names]


def test_the_interval_holds_the_truth() -> None:
    with files_on_fuse(*KEEPS) as paths, truth.looker(paths, STRANGER) as looker:
        found: list[Run] = []
        for percent in PERCENTS:
            for pattern in truth.states(RUNS, percent):
                truth.make_resident(paths, percent, pattern)
                found.append(looker.run())
    known = [run for run in found if run.known]
    assert len(known) >= 0.9 * len(found)
    # 95 % are promised: of 72 runs 68 on average, and 63 are three standard deviations below that.
    assert sum(run.holds for run in known) >= 0.875 * len(known), known
    assert [run for run in known if run.points_off > FURTHEST_POINTS] == []


@pytest.mark.parametrize("options", [(), ("--direct-io",)])
def test_what_keeps_nothing_is_never_called_resident(
    options: Sequence[str],
) -> None:
    with files_on_fuse(*options) as paths, truth.looker(paths, STRANGER) as looker:
        for _ in range(RUNS):
            truth.make_resident(paths, 100, "head")
            found = looker.run()
            assert not found.known or (found.high or 0.0) <= 1.0, found


def test_it_leaves_the_cache_as_it_was() -> None:
    with files_on_fuse(*KEEPS) as paths, truth.looker(paths, STRANGER) as looker:
        for percent in (0, 50):
            truth.make_resident(paths, percent, "blocks")
            before = oracle.resident_bytes(paths)
            found = looker.run()
            assert found.pages >= 512
            # 512 pages and more were looked at, and the kernel may take some, too.
            assert abs(oracle.resident_bytes(paths) - before) <= 32 * truth.PAGE


def as_stranger(*arguments: str) -> command.Done:
    """Return a run of the command by a user who owns nothing.

    Such a user may not open our Python or this checkout, so everything is imported before.
    """
    script = (
        "import importlib, os, pkgutil, sys; import prefetch_cli; from man import content; "
        "names = [one.name for one in pkgutil.walk_packages(prefetch_cli.__path__, 'prefetch_cli.')"
        " if not one.name.endswith('__main__')]; "
        "modules = [importlib.import_module(name) for name in names]; "
        "main = sys.modules['prefetch_cli.cli.main']; "
        f"os.setgroups([]); os.setgid({STRANGER}); os.setuid({STRANGER}); "
        "sys.argv[0] = 'prefetch-cli'; main.main()"
    )
    return command.run(*arguments, command=(sys.executable, "-c", script))


def told(*arguments: str) -> command.Done:
    """Return such a run, once the clock told something: on a busy machine it may not."""
    for number in range(12):
        done = as_stranger(*arguments)
        if done.document["residency"]["method"] != "unknown":
            break
        time.sleep(0.2 * number)
    return done


def test_what_a_server_holds_is_not_called_dropped() -> None:
    with files_on_fuse(*KEEPS) as paths:
        how = ("--evict", "--json", "--load-format", "all", os.path.dirname(paths[0]))
        truth.make_resident(paths, 100, "head")
        with (
            open(paths[0], "rb") as file,
            mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping,
        ):
            assert sum(mapping[page] for page in range(0, len(mapping), mmap.PAGESIZE)) >= 0
            held = told(*how)
        assert oracle.resident_bytes(paths[:1]) == oracle.about(truth.SIZES[0])
        assert held.code == 1
        result = held.document["result"]
        assert (result["bytes_evicted"], result["complete"]) == (None, False)
        [failed] = result["failed"]
        assert failed["path"] == paths[0]
        assert failed["error"].endswith(
            "stay, by a sample: dirty, mapped or locked by a process that this user cannot see"
        )
        assert failed["error"] in held.errors

        gone = told(*how)
        # The sample looks at pages, and what has just been read may wait in a processor's batch.
        assert oracle.resident_bytes(paths) <= 32 * truth.PAGE
        assert (gone.code, gone.document["warnings"]) == (0, [])
        assert (gone.document["result"]["bytes_evicted"], gone.document["result"]["complete"]) == (
            None,
            True,
        )


def test_where_nothing_can_look_nothing_is_called_dropped() -> None:
    with files_on_fuse("--direct-io") as paths:
        how = ("--evict", "--json", "--load-format", "all", os.path.dirname(paths[0]))
        done = as_stranger(*how)
        assert (done.code, done.document["result"]["failed"]) == (0, [])
        assert (done.document["result"]["bytes_evicted"], done.document["result"]["complete"]) == (
            None,
            None,
        )
        [warning] = done.document["warnings"]
        assert "cannot tell whether anything stayed" in warning


def test_what_the_command_makes_of_it() -> None:
    with files_on_fuse(*KEEPS, "--subtype", "juicefs") as paths:
        how = ("--load-format", "all", os.path.dirname(paths[0]))
        truth.make_resident(paths, 50, "blocks")
        half = told("--check", "--min-resident", "99", "--json", *how)
        residency = half.document["residency"]
        assert (half.code, residency["method"]) == (4, "timed")
        assert residency["high_bytes"] < 0.99 * residency["total_bytes"]
        assert told("--check", "--min-resident", "30", "--json", *how).code == 0

        done = as_stranger("--json", *how)
        assert (done.code, done.document["decision"]["reason"]) == (0, "network-fits")
        assert done.document["result"]["bytes_read"] == sum(truth.SIZES)
        assert done.document["residency"]["low_bytes"] > 0.9 * sum(truth.SIZES)
        assert "stayed" not in done.errors

        # Some kernels take a share of any cache within seconds; what was taken is read again.
        for _ in range(8):
            again = as_stranger("--json", *how)
            warm = again.document["decision"]["reason"] == "already-resident"
            assert warm == (again.document["result"] is None), again
            if warm:
                break
        assert warm, again
        assert as_stranger("--json", "--force", *how).document["result"] is not None
        assert "(timed sample of 1,024 pages)" in as_stranger("--check", *how).output


def test_what_did_not_stay_is_doubted() -> None:
    with files_on_fuse("--subtype", "juicefs") as paths:
        done = as_stranger("--load-format", "all", os.path.dirname(paths[0]))
        assert done.code == 0
        assert "at most" in done.errors
        assert "likely the FUSE file system drops cached pages" in done.errors
