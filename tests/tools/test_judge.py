"""What `make sweep` calls wrong: runs that were made up."""

import json
import os
from dataclasses import replace

import pytest

from tests.faults.inject import Ran
from tests.faults.sweep import ACTIONS, Scene, parse_fault, write_scene, wrong


def judged(scene: Scene, action: str, ran: Ran, fault: str = "read#1=EIO") -> list[str]:
    scene.prepare(0.0, scene.files)
    (found,) = (one for one in ACTIONS if one.name == action)
    return list(wrong(scene, found, parse_fault(fault), ran))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("sweep")
    write_scene(str(folder / "scene"))
    return Scene(str(folder / "scene"), str(folder))


def of(code: int = 0, **document: object) -> Ran:
    """Return a run that ended and put out such a document."""
    return Ran(code, output=json.dumps({"exit_code": code, "warnings": ["x"], **document}))


ALL = {"total_bytes": 6_292_000}


@pytest.mark.parametrize(
    ("action", "ran", "found"),
    [
        ("auto", Ran(), "did not end"),
        ("auto", replace(of(), left=True), "a process was left"),
        ("auto", replace(of(143), held_seconds=3.0), "a signal ended it after 3.0 s"),
        ("auto", replace(of(), errors="Traceback (most"), "it said 'Traceback'"),
        ("auto", replace(of(), output="{}{}"), "no JSON document"),
        ("auto", of(3), "exit code 3"),
        ("auto", of(1), "without a word"),
        ("auto", replace(of(1), errors="x"), "without a reason in the document"),
        ("auto", of(result={"complete": True}), "it says complete, and 0 of"),
        ("auto", of(warnings=[]), "exit code 0 without a warning"),
        ("auto", of(residency={**ALL, "after_bytes": 6_292_000}), "6,292,000 bytes are resident"),
        ("check", of(residency={**ALL, "after_bytes": 3_000_000}), "3,000,000 bytes are resident"),
        (
            "check",
            of(residency={**ALL, "after_bytes": 1, "low_bytes": 500_000, "high_bytes": 600_000}),
            "500,000 bytes and more are resident",
        ),
        ("command", Ran(0), "COMMAND was not started"),
    ],
)
def test_the_judge_sees_what_is_wrong(scene: Scene, action: str, ran: Ran, found: str) -> None:
    assert any(found in problem for problem in judged(scene, action, ran))


def test_the_judge_sees_what_was_written(scene: Scene) -> None:
    assert judged(scene, "check", of()) == []
    before = os.stat(scene.files[0])
    os.utime(scene.files[0])
    found = judged(scene, "check", of())
    os.utime(scene.files[0], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert found == ["a file was changed"]


def test_eviction_is_judged_by_what_stays(scene: Scene) -> None:
    evicted = of(result={"complete": True})
    assert judged(scene, "evict", evicted) == []
    (action,) = (one for one in ACTIONS if one.name == "evict")
    scene.prepare(1.0, scene.files)
    [problem] = wrong(scene, action, None, evicted)
    assert "it says complete, and 6,29" in problem
