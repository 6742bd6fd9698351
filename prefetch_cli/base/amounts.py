"""Sizes, percentages and durations, parsed and formatted: the one home of binary units."""

import math
import re
from contextlib import suppress
from typing import NamedTuple

import humanfriendly

_SIZE = re.compile(
    r"(?P<whole>[0-9]{1,20})(?:\.(?P<part>[0-9]{1,20}))?\s*"
    r"(?:B|(?P<unit>[KMGTPE])(?:i?B|i)?)?",
    re.ASCII | re.IGNORECASE,
)
_PERCENT = re.compile(r"[0-9]{1,20}(?:\.[0-9]{1,20})?%", re.ASCII)
_UNITS = ("", "K", "M", "G", "T", "P", "E")
_LARGEST_SIZE = 2**63 - 1  # off_t: nothing on the system can be larger

_SECONDS_IN = {"hours": 3600, "minutes": 60, "seconds": 1}
_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_DURATIONS = (
    re.compile(rf"(?P<seconds>{_NUMBER})"),
    re.compile(
        rf"(?:(?P<hours>{_NUMBER})h)?\s*(?:(?P<minutes>{_NUMBER})m)?\s*(?:(?P<seconds>{_NUMBER})s)?",
        re.ASCII | re.IGNORECASE,
    ),
    # After hours, minutes end at 59.
    re.compile(
        r"(?:(?P<hours>[0-9]+):(?=[0-5]?[0-9]:))?(?P<minutes>[0-9]+):(?P<seconds>[0-5][0-9])"
    ),
)


def parse_size(text: str) -> int:
    """Return the bytes that `text` stands for, in units of 1024: `16MiB`, `16M` and `16777216`.

    Raises ValueError with a message for the user, unless it is a size from 1 to 2^63 - 1 bytes.
    """
    size = 0
    if match := _SIZE.fullmatch(text.strip()):
        whole, part = match["whole"], match["part"] or ""
        unit = 1024 ** _UNITS.index((match["unit"] or "").upper())
        size = int(whole + part) * unit // 10 ** len(part)
    if not 1 <= size <= _LARGEST_SIZE:
        raise ValueError(
            f"expected a size from 1 byte to 2^63 - 1 bytes, such as 16MiB, found {text!r}"
        )
    return size


class Amount(NamedTuple):
    """A part of a whole, in bytes or in percent."""

    size_bytes: int = 0
    percent: float = 0.0

    def of(self, total_bytes: int) -> int:
        """Return how many bytes of a total it is; at most the total."""
        return min(total_bytes, max(self.size_bytes, math.ceil(total_bytes * self.percent / 100)))


def parse_amount(text: str) -> Amount:
    """Return the amount that `text` stands for: `8GiB`, `25%`, or `0`.

    Raises ValueError with a message for the user.
    """
    text = text.strip()
    if text == "0":
        return Amount()
    if _PERCENT.fullmatch(text) and (percent := float(text.removesuffix("%"))) <= 100:
        return Amount(percent=percent)
    with suppress(ValueError):
        return Amount(size_bytes=parse_size(text))
    raise ValueError(f"expected a size such as 8GiB, or a part such as 25%, found {text!r}")


def format_size(size_bytes: float) -> str:
    """Return a size in units of 1024: `1.5 GiB`."""
    return str(humanfriendly.format_size(size_bytes, binary=True))


def format_rate(bytes_per_second: float) -> str:
    """Return a rate in units of 1024: `1.5 GiB/s`."""
    return f"{format_size(bytes_per_second)}/s"


def parse_duration(text: str) -> float:
    """Return the seconds that `text` stands for: `90s`, `5m`, `1h30m`, `01:30:00`, `90`.

    Raises ValueError with a message for the user, unless it is a duration above zero.
    """
    matches = (form.fullmatch(text.strip()) for form in _DURATIONS)
    parts = next((match.groupdict() for match in matches if match), {})
    seconds = sum(float(parts.get(unit) or 0) * factor for unit, factor in _SECONDS_IN.items())
    if not 0 < seconds < math.inf:
        raise ValueError(f"expected a duration such as 90s, 5m, 1h30m or 01:30:00, found {text!r}")
    return seconds


def format_duration(seconds: float) -> str:
    """Return a duration in short: `0.31 s`, `42.6 s`, `5m 07s`, `1h 02m`."""
    if seconds < 0.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}h {minutes:02d}m"


def format_percent(part: float, whole: float) -> str:
    """Return a share in percent: `99.9 %`; `100 %` means all of it, `0 %` nothing."""
    if part >= whole:
        return "100 %"
    if part <= 0:
        return "0 %"
    return f"{min(100 * part / whole, 99.9):.1f} %"


def format_range(low: float, high: float, whole: float) -> str:
    """Return the percentages between which a share lies, rounded outward: `98.1 to 100 %`."""
    least = math.floor(1000 * low / whole) / 10 if whole else 100.0
    most = math.ceil(1000 * high / whole) / 10 if whole else 100.0
    return f"{least:g} to {most:g} %"
