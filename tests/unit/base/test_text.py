"""File names hold any byte; what we show of them cannot act on a terminal."""

import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefetch_cli.base.text import counted, listing, printable


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("model-00001-of-00002.safetensors", "model-00001-of-00002.safetensors"),
        ("two words", "two words"),
        ("[red]x[/red]", "[red]x[/red]"),
        ("Über-模型🤗", "Über-模型🤗"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[31mred\x1b]0;title\x07", r"\x1b[31mred\x1b]0;title\x07"),
        ("\x7f\x80\x9b31m", r"\x7f\x80\x9b31m"),
        ("\N{RIGHT-TO-LEFT OVERRIDE}txt.exe", r"\u202etxt.exe"),
        ("\N{ZERO WIDTH SPACE}\N{LINE SEPARATOR}", r"\u200b\u2028"),
        (os.fsdecode(b"\x80\xff.bin"), r"\x80\xff.bin"),
        ("\ud800", r"\ud800"),
        (r"back\slash", r"back\slash"),
        ("", ""),
    ],
)
def test_what_could_act_is_escaped(name: str, shown: str) -> None:
    assert printable(name) == shown


@given(st.binary())
def test_any_name_is_one_safe_line(name: bytes) -> None:
    shown = printable(os.fsdecode(name))
    shown.encode()  # no surrogates
    assert not {unicodedata.category(char)[0] for char in shown} & {"C"}
    assert len(f"{shown}.".splitlines()) == 1


@given(st.text())
def test_any_text_is_one_safe_line(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown


def test_a_listing_names_the_first_and_counts_the_rest() -> None:
    names = [f"file-{number}\n" for number in range(1, 2008)]
    assert listing(names[:1]) == r"file-1\n"
    assert listing(names[:3], most=3) == r"file-1\n, file-2\n, file-3\n"
    assert listing(names) == r"file-1\n, file-2\n, file-3\n, file-4\n, file-5\n and 2,002 more"


def test_a_number_agrees_with_its_noun() -> None:
    assert counted(0, "file") == "0 files"
    assert counted(1, "file") == "1 file"
    assert counted(12345, "file") == "12,345 files"
    assert counted(1, "index", "indexes") == "1 index"
    assert counted(2, "index", "indexes") == "2 indexes"
