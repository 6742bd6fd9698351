"""The handling of each fault, taken away: its test has to fail then. A part of `make mutants`.

In a copy of the tree, one place at a time. Faults that need no handling have no row: what a file
held when it was opened is read on whatever becomes of its name, and SIGKILL, SIGSTOP and a root
that nobody can write to ask nothing of the command. Those of the test machine are left to it.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tests.mutants import copied

_SECONDS = 300  # of one test: without its handling, a fault may well hang it
_TESTS_FAILED = 1  # of pytest: neither "no tests" nor "interrupted"


@dataclass(frozen=True)
class Handling:
    """What is taken away, and the test that must notice."""

    test: str  # as the table of the faults names it: module::test
    module: str
    there: str  # exactly once in the module
    instead: str


_READER = "    except OSError as error:\n                self._fail(handle, error)"
_LOOK = "        except OSError as error:\n            return _failed(file, wanted, error)"

HANDLINGS = (
    Handling(
        "faults.test_storage::eio_in_the_middle",
        "reader",
        *(_READER, "    finally:\n                pass"),
    ),
    Handling(
        "faults.test_storage::eio_on_open", "survey", *(_LOOK, "        finally:\n            pass")
    ),
    Handling(
        "test_end_to_end::a_shard_without_permission_fails_alone",
        "survey",
        *(_LOOK, "        finally:\n            pass"),
    ),
    Handling(
        "faults.test_storage::a_shard_that_vanishes",
        "reader",
        *(_READER, "    finally:\n                pass"),
    ),
    Handling(
        "faults.test_storage::a_directory_that_vanishes",
        "reader",
        *(_READER, "    finally:\n                pass"),
    ),
    Handling(
        "faults.test_storage::a_shard_cut_short",
        "reader",
        "raise _cut_short(descriptor, offset)",
        "return end",
    ),
    Handling(
        "faults.test_storage::reads_that_return_short",
        "reader",
        "offset += got\n",
        "offset += size\n",
    ),
    Handling(
        "test_signals::a_mount_that_hangs_until_the_time_limit",
        "reader",
        "                        return  # a thread hangs",
        "                        pass  # a thread hangs",
    ),
    Handling(
        "test_signals::a_mount_that_hangs_before_anything_is_known",
        "supervisor",
        "if signals.waited_seconds > _GRACE_SECONDS or",
        "if",
    ),
    Handling(
        "test_signals::a_mount_that_hangs_before_anything_is_known",
        "supervisor",
        " or stop.overdue_seconds > _OVERDUE_SECONDS",
        "",
    ),
    Handling(
        "faults.test_limits::few_descriptors",
        "workers",
        "_by_descriptors(threads, descriptors), ",
        "",
    ),
    Handling(
        "faults.test_limits::few_threads",
        "workers",
        "            break\n    return threads",
        "            raise\n    return threads",
    ),
    Handling(
        "faults.test_limits::no_threads",
        "cli",
        'and "start new thread" in str(defect)',
        "and False",
    ),
    Handling("faults.test_limits::little_address_space", "workers", ", _by_addresses(threads)", ""),
    Handling(
        "test_streams::a_stream_that_fails_stops_nothing",
        "streams",
        "            except (OSError, ValueError):\n                # A reader",
        "            except ZeroDivisionError:\n                # A reader",
    ),
    Handling(
        "test_signals::an_output_that_nobody_reads_does_not_hold_it",
        "supervisor",
        "        leave(interrupted_exit_code(number))",
        "        return",
    ),
    Handling(
        "test_terminal::the_bar_fits",
        "display",
        "bar_line(snapshot, self._live.console.width - 1)",
        "bar_line(snapshot, 200)",
    ),
    Handling(
        "test_terminal::a_terminal_without_a_cursor_gets_log_lines",
        "display",
        '_NOT_ABLE = {"", "dumb", "unknown"}',
        "_NOT_ABLE = {None}",
    ),
    Handling(
        "test_terminal::a_terminal_that_goes_away_stops_nothing",
        "streams",
        "            except (OSError, ValueError):\n                # A reader",
        "            except ZeroDivisionError:\n                # A reader",
    ),
    Handling(
        "test_signals::a_signal_ends_with_its_code_and_what_was_read",
        "supervisor",
        "_SIGNALS = (signal.SIGHUP, ",
        "_SIGNALS = (",
    ),
    Handling(
        "test_signals::a_signal_ends_with_its_code_and_what_was_read",
        "supervisor",
        "report = replace(report, signal=received)",
        "pass",
    ),
    Handling(
        "test_signals::a_second_interrupt_ends_at_once",
        "supervisor",
        "if again is not None and self.waited_seconds > _SAME_SIGNAL_SECONDS:",
        "if again == 0:",
    ),
    Handling(
        "faults.test_surroundings::without_proc",
        "filesystem",
        "        except OSError:\n            return cls(())",
        "        finally:\n            pass",
    ),
    Handling(
        "faults.test_surroundings::without_proc",
        "memory",
        "        except OSError:\n            # No /proc",
        "        except KeyError:\n            # No /proc",
    ),
    Handling(
        "faults.test_surroundings::without_sys",
        "filesystem",
        "    except (OSError, ValueError):\n        return 0",
        "    finally:\n        pass",
    ),
    Handling(
        "faults.test_surroundings::locale_c",
        "streams",
        'reconfigure(errors="backslashreplace")',
        "reconfigure()",
    ),
    Handling(
        "faults.test_refusals::cachestat",
        "pagecache",
        "return None if failed else stat",
        "return stat",
    ),
    Handling(
        "faults.test_refusals::residency",
        "pagecache",
        "    except OSError:\n        return False\n    return not page",
        "    finally:\n        pass\n    return not page",
    ),
    Handling(
        "faults.test_refusals::all_residency",
        "pagecache",
        "        except OSError:  # EOPNOTSUPP: NFS, FUSE, overlay, tmpfs\n            return None",
        "        except OSError:\n            continue",
    ),
    Handling(
        "faults.test_refusals::advice",
        "pagecache",
        "with contextlib.suppress(OSError):\n        os.posix_fadvise",
        "with contextlib.nullcontext():\n        os.posix_fadvise",
    ),
    Handling(
        "faults.test_refusals::eviction",
        "eviction",
        "except OSError as error:\n            return _Dropped(None, error.strerror or str(error))",
        "finally:\n            pass",
    ),
    Handling(
        "faults.test_refusals::splice",
        "reader",
        "errno.EOPNOTSUPP, errno.EPERM}",
        "errno.EOPNOTSUPP}",
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 where each test fails without the handling of its fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.unhandled", description=__doc__)
    parser.add_argument("--only", action="append", help="a part of a test's name; repeatable")
    given = parser.parse_args(arguments)
    folder = copied("faults")
    unnoticed = 0
    for handling in HANDLINGS:
        if given.only and not any(part in handling.test for part in given.only):
            continue
        outcome = _outcome(handling, folder)
        unnoticed += outcome is not None
        print(f"{handling.module:11} {handling.test:60} {outcome or 'noticed'}", flush=True)
    print(f"unhandled: {unnoticed} not noticed")
    return int(unnoticed > 0)


def _outcome(handling: Handling, folder: str) -> str | None:
    """Return what is wrong: None where the test passes, and fails without the handling."""
    path = os.path.join(folder, "prefetch_cli", f"{handling.module}.py")
    with open(path, encoding="utf-8") as file:
        text = file.read()
    if text.count(handling.there) != 1:
        return f"is there {text.count(handling.there)} times: {handling.there!r}"
    without = text.replace(handling.there, handling.instead)
    compile(without, path, "exec")  # what is no Python would fail every test
    if (code := _test(handling, folder)) != 0:
        return f"fails as it is: pytest ended with {code}"
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(without)
        code = _test(handling, folder)
    finally:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    return None if code in {_TESTS_FAILED, None} else f"not noticed: pytest ended with {code}"


def _test(handling: Handling, folder: str) -> int | None:
    """Return how pytest ended, None where the test hung."""
    module, _, test = handling.test.partition("::")
    path = f"tests/{module.replace('.', '/')}.py::test_{test}"
    try:
        return subprocess.run(
            (sys.executable, "-m", "pytest", "-x", "-q", "-n0", "-p", "no:cacheprovider", path),
            cwd=folder,
            env={**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            check=False,
            timeout=_SECONDS,
        ).returncode
    except subprocess.TimeoutExpired:
        return None


if __name__ == "__main__":
    sys.exit(main())
