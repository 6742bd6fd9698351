"""Cutting takes what was asked for, and fails where it cannot."""

import pytest

from tests.peers import cutting

_SOURCE = """
import nowhere

LIMIT: int = 3

@nowhere.decorated
def double(value: nowhere.Type) -> nowhere.Type:
    return add(value, value)

class Loader(Base):
    name = "loader"

    @staticmethod
    def load(value):
        import nowhere

    def unused(self):
        return nowhere

    def chosen(self, count):
        first = count
        if first > LIMIT:
            first = LIMIT
        last = first
"""


def test_a_function_runs_without_decorators_annotations_and_imports() -> None:
    names = cutting.run([cutting.cut(_SOURCE, ["double"])], {"add": lambda a, b: a + b}, {})
    assert names.double(2) == 4


def test_a_method_comes_with_its_class_and_without_its_siblings() -> None:
    part = cutting.cut(_SOURCE, ["LIMIT", "Loader.load"])
    names = cutting.run([part], {"Base": object}, {"nowhere": None})
    assert names.LIMIT == 3
    assert names.Loader.name == "loader"
    assert names.Loader.load(1) is None
    assert not hasattr(names.Loader, "unused")


def test_statements_of_a_method_become_a_function() -> None:
    part = cutting.cut_piece(
        _SOURCE,
        "Loader.chosen",
        name="chosen",
        parameters=["count"],
        begins="first",
        ends="first",
    )
    assert cutting.run([part], {"LIMIT": 3}, {}).chosen(7) == 3


@pytest.mark.parametrize("name", ["treble", "Loader.store"])
def test_a_name_that_is_not_there(name: str) -> None:
    with pytest.raises(LookupError):
        cutting.cut(_SOURCE, [name])


def test_statements_that_are_not_there() -> None:
    with pytest.raises(LookupError):
        cutting.cut_piece(
            _SOURCE, "Loader.chosen", name="f", parameters=[], begins="none", ends="last"
        )


def test_what_has_no_stub_is_no_outcome() -> None:
    names = cutting.run([cutting.cut(_SOURCE, ["double", "Loader.load"])], {"Base": object}, {})
    with pytest.raises(NameError, match="add"):
        names.double(2)
    with pytest.raises(NameError, match="nowhere"):
        names.Loader.load(1)
