"""A short, fixed run of each way in; `make fuzz` runs for as long as it is told to."""

import random
from pathlib import Path

import pytest

from prefetch_cli.base.errors import PrefetchError
from tests.fuzz.mutations import mutated
from tests.fuzz.targets import Target, targets

_CASES = 150


@pytest.mark.parametrize("target", targets(), ids=lambda target: target.name)
def test_what_is_nearly_right_is_taken_or_refused(target: Target, tmp_path: Path) -> None:
    run = target.open(tmp_path)
    chance = random.Random(target.name)
    for _ in range(_CASES):
        content = mutated(chance, target.seeds)
        try:
            run(content)
        except PrefetchError as error:
            assert str(error).isprintable()  # noqa: PT017
        except BaseException as error:
            raise AssertionError(f"{target.name}: {content!r}") from error


def test_mutations_repeat_themselves_by_their_seed() -> None:
    seeds = [b"abc", b"0123456789" * 10]
    first, second = (random.Random(7) for _ in range(2))
    assert [mutated(first, seeds) for _ in range(50)] == [mutated(second, seeds) for _ in range(50)]
