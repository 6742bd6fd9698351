"""What the tool's own counter says, by one method."""

from prefetch_cli.linux.pagecache import Counter


def by_mincore(descriptor: int, offset: int, length: int) -> int:
    """Return the resident bytes of a range."""
    found = Counter(descriptor, reads_in_flight=True).count(offset, length)
    assert found is not None
    return found.resident_bytes
