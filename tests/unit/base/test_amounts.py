"""Sizes and durations: what users write, what they read, and that both agree."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefetch_cli.base.amounts import (
    Amount,
    format_duration,
    format_percent,
    format_rate,
    format_size,
    parse_amount,
    parse_duration,
    parse_size,
)

KIB, MIB, GIB = 1024, 1024**2, 1024**3
LARGEST = 2**63 - 1


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("16MiB", 16 * MIB),
        ("16M", 16 * MIB),
        ("16Mi", 16 * MIB),
        ("16MB", 16 * MIB),
        ("16mib", 16 * MIB),
        (" 16 MiB ", 16 * MIB),
        ("16777216", 16 * MIB),
        ("1", 1),
        ("1B", 1),
        ("4k", 4 * KIB),
        ("1.5G", 3 * GIB // 2),
        ("0.5KiB", 512),
        ("2TiB", 2 * 1024 * GIB),
        ("1P", 1024**5),
        ("7E", 7 * 1024**6),
        ("4096.9", 4096),
        # Too large for an exact float.
        (str(LARGEST), LARGEST),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_a_size_is_read_in_units_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "0", "0.9", "0KiB", "-1", "+1", "abc", "M", "nan", "inf", "1e400", "1e3"),
        *("16melons", "16 bananas", "16iB", "1.M", ".5M", "1..5M", "1,5M", "1_000", "0x10", "5%"),
        *(
            "8E",
            str(2**63),
            "9" * 20,
            "9" * 5000,
            "1M 2M",
            "1\N{ARABIC-INDIC DIGIT SIX}M",
            "1\N{KELVIN SIGN}",
            "1\0",
        ),
    ],
)
def test_anything_else_is_refused_as_a_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected a size .* such as 16MiB, found "):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("0", Amount()),
        (" 0 ", Amount()),
        ("8GiB", Amount(size_bytes=8 * GIB)),
        ("1", Amount(size_bytes=1)),
        ("1.5G", Amount(size_bytes=3 * GIB // 2)),
        ("25%", Amount(percent=25)),
        (" 0% ", Amount()),
        ("0.5%", Amount(percent=0.5)),
        ("100%", Amount(percent=100)),
        ("100.0%", Amount(percent=100)),
    ],
)
def test_an_amount_is_a_size_or_a_part(text: str, amount: Amount) -> None:
    assert parse_amount(text) == amount


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "%", "-1", "-1%", "+5%", "100.1%", "101%", "1e1%", "nan%", "inf%", "5 %", "%5"),
        *("5%%", ".5%", "5.%", "0.9", "0KiB", "00", "half", "8EiB", "9" * 21 + "%", "5%\0"),
        "\N{ARABIC-INDIC DIGIT SIX}%",
    ],
)
def test_anything_else_is_refused_as_an_amount(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected a size .*, or a part .*, found ") as raised:
        parse_amount(text)
    assert repr(text.strip()) in str(raised.value)


@pytest.mark.parametrize(
    ("amount", "total", "size"),
    [
        (Amount(), 0, 0),
        (Amount(), 100, 0),
        (Amount(size_bytes=60), 100, 60),
        (Amount(size_bytes=101), 100, 100),
        (Amount(size_bytes=1), 0, 0),
        (Amount(percent=50), 100, 50),
        (Amount(percent=50), 101, 51),  # rounded up
        (Amount(percent=0.001), 100, 1),
        (Amount(percent=100), 3, 3),
        (Amount(percent=100), LARGEST, LARGEST),
    ],
)
def test_an_amount_of_something(amount: Amount, total: int, size: int) -> None:
    assert amount.of(total) == size


def test_an_amount_is_nothing_by_default() -> None:
    assert Amount() == Amount(size_bytes=0, percent=0.0)


# Percentages are computed in floats, which are exact up to 8 PiB.
@given(st.integers(0, 2**53), st.floats(0, 100), st.integers(0, LARGEST))
def test_an_amount_is_never_more_than_the_whole(total: int, percent: float, size: int) -> None:
    part = Amount(percent=percent).of(total)
    assert 0 <= part <= total
    assert part == pytest.approx(total * percent / 100, rel=1e-9, abs=1)
    assert Amount(percent=100).of(total) == total
    assert Amount(size_bytes=size).of(total) == min(size, total)


@given(st.text())
def test_any_text_is_a_size_in_bounds_or_refused(text: str) -> None:
    try:
        assert 1 <= parse_size(text) <= LARGEST
    except ValueError as error:
        assert str(error).startswith("expected a size")  # noqa: PT017


@given(st.integers(1, LARGEST))
def test_a_number_of_bytes_is_itself(size: int) -> None:
    assert parse_size(str(size)) == size


@given(st.integers(1, 2**60))
def test_a_shown_size_is_read_back_to_a_hundredth(size: int) -> None:
    text = format_size(size).replace(" bytes", "B").replace(" byte", "B")
    assert parse_size(text) == pytest.approx(size, rel=0.01)


def test_sizes_are_shown_in_units_of_1024() -> None:
    assert format_size(0) == "0 bytes"
    assert format_size(1) == "1 byte"
    assert format_size(1536) == "1.5 KiB"
    assert format_size(16 * MIB) == "16 MiB"
    assert format_rate(2.5 * GIB) == "2.5 GiB/s"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("5m", 300),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1h 30m 5s", 5405),
        ("1h5s", 3605),
        ("01:30:00", 5400),
        ("1:5:30", 3930),
        ("100:00:00", 360000),
        ("2:30", 150),
        ("90:00", 5400),
        ("90", 90),
        ("0.5", 0.5),
        ("0.25s", 0.25),
        ("1.5H", 5400),
        (" 5m ", 300),
    ],
)
def test_a_duration_is_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "0", "0s", "0h0m", "00:00:00", "-5s", "abc", "s", "h", "nan", "inf", "1e3"),
        *("1h30", "30m1h", "1d", "5 m", "1m1m", "1:75:00", "1:30:75", "1:2:3", ":30", "1:", "1::2"),
        *(
            "5\N{LATIN SMALL LETTER LONG S}",
            "\N{ARABIC-INDIC DIGIT FIVE}m",
            "9" * 400,
            "9" * 400 + "h",
        ),
    ],
)
def test_anything_else_is_refused_as_a_duration(text: str) -> None:
    with pytest.raises(ValueError, match="expected a duration such as 90s, 5m, 1h30m"):
        parse_duration(text)


@given(st.text(alphabet="0123456789hmsHMS:. "))
def test_any_duration_is_above_zero_and_finite(text: str) -> None:
    try:
        assert 0 < parse_duration(text) < float("inf")
    except ValueError as error:
        assert str(error).startswith("expected a duration")  # noqa: PT017


@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59))
def test_both_forms_of_a_duration_agree(hours: int, minutes: int, seconds: int) -> None:
    total = hours * 3600 + minutes * 60 + seconds
    if total:
        assert parse_duration(f"{hours}h{minutes}m{seconds}s") == total
        assert parse_duration(f"{hours}:{minutes:02}:{seconds:02}") == total


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.00 s"),
        (0.312, "0.31 s"),
        (0.994, "0.99 s"),
        (0.995, "1.0 s"),
        (0.996, "1.0 s"),
        (42.6, "42.6 s"),
        (59.94, "59.9 s"),
        (59.95, "1m 00s"),
        (59.96, "1m 00s"),
        (307, "5m 07s"),
        (3599.4, "59m 59s"),
        (3599.6, "1h 00m"),
        (3720, "1h 02m"),
        (7199.9, "2h 00m"),
    ],
)
def test_a_duration_is_shown_short(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 7, "0 %"),
        (7, 7, "100 %"),
        (0, 0, "100 %"),
        (8, 7, "100 %"),
        (-1, 7, "0 %"),
        (1, 3, "33.3 %"),
        (10**9 - 1, 10**9, "99.9 %"),
    ],
)
def test_only_all_is_shown_as_100_percent(part: int, whole: int, text: str) -> None:
    assert format_percent(part, whole) == text
