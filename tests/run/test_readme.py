"""README, and the other documents in Markdown: short, linked, and true to what the program does."""

import json
import os
import re
from typing import Any

import pytest

import prefetch_cli
from prefetch_cli.base.words import PROGRAM
from tests.helpers.command import ROOT
from tests.helpers.documents import fenced, read, section
from tests.recipes.section import recipes
from tests.run import examples

MOST_LINES = 300
DOCUMENTS = (
    "README.md",
    "CHANGELOG.md",
    "man/options.md",
    "tests/README.md",
    "tests/bench/README.md",
)


@pytest.fixture(scope="module")
def readme() -> str:
    return read("README.md")


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", one.lower()).replace(" ", "-") for one in headings}


def test_readme_opens_with_sentence_install_command_and_its_output(readme: str) -> None:
    opening = "\n".join(readme.splitlines()[:25]) + "\n"
    title, sentence, *_ = [line for line in opening.splitlines() if line]
    assert title == f"# {PROGRAM}"
    assert re.fullmatch(r"[A-Z][^.]*\.", sentence)
    assert "pipx install" in fenced(opening, "sh")[0]
    output = fenced(opening, "console")[0].splitlines()
    assert output[0].startswith(f"$ {PROGRAM} ")
    assert output[-1].startswith("resident ")


def test_readme_is_short(readme: str) -> None:
    assert len(readme.splitlines()) <= MOST_LINES


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    text = read(name)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in anchors(text)
        elif "://" not in target:
            assert os.path.exists(os.path.join(ROOT, os.path.dirname(name), target))


def test_readme_lists_its_sections_in_order(readme: str) -> None:
    listed = re.findall(r"\[([^]]*)\]\(#", readme)
    assert listed == re.findall(r"^## (.*)$", readme, re.MULTILINE)


def test_readme_names_every_recipe(readme: str) -> None:
    text = section(readme, "Recipes")
    listed = re.split(r",\s+", text.strip().partition(":")[0])
    assert listed == [one.name for one in recipes()]
    assert "(man/prefetch-cli-recipes.7)" in text


def test_readme_has_the_map_of_the_packages(readme: str) -> None:
    (shown,) = fenced(section(readme, "Developing"), "text")
    *_, packages = (prefetch_cli.__doc__ or "").strip().split("\n\n")
    assert shown.strip() == packages, "copy it from prefetch_cli/__init__.py"


def test_figures_of_readme_are_measured_ones(readme: str) -> None:
    number = re.compile(r"\d[\d.,]*\d|\d")
    measured = set(number.findall(read("tests", "bench", "README.md")))
    figures = section(readme, "Figures")
    rows = re.findall(r"^\| [A-Z0-9].*$", figures, re.MULTILINE)
    assert len(rows) == 5
    assert {one for row in rows for one in number.findall(row)} <= measured


def contains(whole: Any, part: Any) -> bool:
    """Whether every key and value of a JSON document is in another one."""
    if isinstance(part, dict):
        return all(key in whole and contains(whole[key], inner) for key, inner in part.items())
    return bool(whole == part)


def test_json_of_readme_is_a_part_of_the_documented_one(readme: str) -> None:
    (excerpt,) = fenced(section(readme, "JSON"), "json")
    assert contains(examples.json_example(), json.loads(excerpt))


def test_commands_of_readme_can_be_given(readme: str) -> None:
    blocks = [*fenced(readme, "console"), *fenced(readme, "bash")]
    lines = [line for block in blocks for line in examples.command_lines(block)]
    assert len(lines) == 4
    for line in lines:
        examples.assert_can_be_given(line)


def test_output_of_readme_has_the_lines_of_a_real_one(readme: str, checkpoint: str) -> None:
    (shown,) = fenced(readme, "console")
    examples.assert_has_the_lines_of_a_real_one(shown, checkpoint)


def test_readme_of_the_tests_names_every_target() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", read("Makefile"), re.MULTILINE)) - {"help"}
    named = set(re.findall(r"`make ([a-z-]+)`", read("tests", "README.md")))
    assert len(targets) > 10
    assert targets <= named
