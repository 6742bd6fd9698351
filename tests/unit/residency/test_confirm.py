"""What the NFS client counts corrects a disturbed clock, and is never contradicted silently."""

from random import Random

import pytest

from prefetch_cli.residency.confirm import Control, Counts, allow_for_disturbance, confirm

PAGE = 4096


@pytest.mark.parametrize(
    ("counts", "fetched_pages", "expected"),
    [
        (Counts(600, 400, 0), 400, Counts(600, 400, 0)),
        (Counts(1000, 0, 24), 0, Counts(1024, 0, 0)),  # nothing was fetched, so all were hits
        (Counts(1000, 14, 10), 4, Counts(1020, 4, 0)),
        (Counts(1000, 14, 10), 16, Counts(1008, 16, 0, doubted=2)),
        (Counts(1000, 24, 0), 30, Counts(994, 24, 6)),  # or somebody else has read a little
        (Counts(1000, 20, 4), 30, Counts(994, 24, 6, doubted=4)),
        (Counts(0, 20, 4), 24, Counts(0, 24, 0, doubted=4)),
        (Counts(1000, 24, 0), 1024, Counts(0, 24, 1000)),
        (Counts(), 0, Counts()),
    ],
)
def test_the_counts(counts: Counts, fetched_pages: int, expected: Counts) -> None:
    assert confirm(counts, counts.misses * PAGE, fetched_pages * PAGE, PAGE) == expected
    assert expected.pages == counts.pages


def test_where_others_read_it_says_nothing() -> None:
    assert confirm(Counts(1000, 24, 0), 24 * PAGE, 1025 * PAGE, PAGE) is None


def test_what_the_count_says_is_likely() -> None:
    """Where the clock cannot tell, what was fetched can: half of these pages were."""
    found = confirm(Counts(500, 400, 100), 400 * PAGE, 500 * PAGE, PAGE)
    assert found is not None
    assert (found.likely, found.hits, found.most_hits) == (0.5, 500, 600)
    assert Counts().likely == 0
    assert Counts(3, 1, 4).likely == 0.75


def test_the_last_page_of_a_file_is_smaller() -> None:
    counts = Counts(5, 2, 0)
    assert confirm(counts, PAGE + 10, PAGE + 10, PAGE) == counts


@pytest.mark.parametrize(
    ("counts", "disturbed", "expected"),
    [
        (Counts(900, 120, 4), 0, Counts(900, 117, 7)),  # one may be, though no known hit was
        (Counts(900, 120, 4), 9, Counts(900, 104, 20)),
        (Counts(900, 120, 4), 900, Counts(900, 0, 124)),
        (Counts(900, 120, 4), 1024, Counts(900, 0, 124)),
        (Counts(100, 920, 4), 9, Counts(100, 917, 7)),
        (Counts(0, 1024, 0), 9, Counts(0, 1024, 0)),  # no hit was there to be disturbed
        (Counts(0, 1024, 0), 1024, Counts(0, 1024, 0)),
        (Counts(), 0, Counts()),
    ],
)
def test_where_known_hits_look_like_misses_some_misses_may_be_hits(
    counts: Counts, disturbed: int, expected: Counts
) -> None:
    assert allow_for_disturbance(counts, Control(1024, disturbed)) == expected


@pytest.mark.parametrize("resident", [0, 50, 512, 1000, 1024])
@pytest.mark.parametrize("rate", [0.0, 0.002, 0.02, 0.2])
def test_enough_is_allowed_for(resident: int, rate: float) -> None:
    """In 95 % of 400 samples with disturbed hits, the unsure ones are at least as many."""
    random = Random(f"{resident} {rate}")

    def disturbed(hits: int) -> int:
        return sum(random.random() < rate for _ in range(hits))

    enough = 0
    for _ in range(400):
        taken, control = disturbed(resident), Control(1024, disturbed(1024))
        seen = Counts(resident - taken, 1024 - resident + taken)
        found = allow_for_disturbance(seen, control)
        assert (found.pages, found.hits) == (1024, seen.hits)
        enough += found.unsure >= taken
    assert enough >= 0.95 * 400
