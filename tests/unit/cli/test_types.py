"""What the values of flags are, and how those that are none are refused."""

import pytest

from prefetch_cli.cli.types import SIZE_OR_AUTO


def test_a_size_or_the_word_auto() -> None:
    assert SIZE_OR_AUTO.parse("auto") == "auto"
    assert SIZE_OR_AUTO.parse("80GiB") == 80 * 1024**3
    assert SIZE_OR_AUTO.words == ("auto",)


@pytest.mark.parametrize("text", ["0", "half", "-1", "", "AUTO"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="such as 16MiB, or auto, found ") as refused:
        SIZE_OR_AUTO.parse(text)
    assert str(refused.value).endswith(repr(text))
