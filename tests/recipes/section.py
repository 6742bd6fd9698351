"""README's recipes as they stand there, and with a checkpoint of the tests in place of theirs."""

import functools
import os
import re
import shlex
import shutil
import sysconfig
from dataclasses import dataclass

from tests.helpers.command import ROOT

README = os.path.join(ROOT, "README.md")
_RECIPE = re.compile(
    r"(?:^<!-- recipe: (?P<name>[a-z-]+) -->\n)?^```(?P<language>[a-z]*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_MODEL = re.compile(r"/models/[\w.-]+")


@dataclass(frozen=True)
class Recipe:
    """A block of code: the name in the comment above it, empty where there is none."""

    name: str
    language: str
    text: str

    @property
    def models(self) -> set[str]:
        """The checkpoints that it names."""
        return set(_MODEL.findall(self.text))

    def of(self, checkpoint: str) -> str:
        """Return the text for another checkpoint, whose path needs no quotes."""
        assert re.fullmatch(r"[\w./-]+", checkpoint), checkpoint
        return _MODEL.sub(lambda _: checkpoint, self.text)

    def words(self, checkpoint: str | None = None) -> list[str]:
        """Return the words of a script that is one command."""
        text = self.text if checkpoint is None else self.of(checkpoint)
        # For a shell these two characters are nothing, for shlex a word.
        return shlex.split(text.replace("\\\n", ""))


@functools.cache
def recipes() -> tuple[Recipe, ...]:
    """Return all blocks of the section, named or not."""
    with open(README, encoding="utf-8") as file:
        _, found, rest = file.read().partition("## Recipes\n")
    assert found, "expected a section Recipes in README"
    body = rest.partition("\n## ")[0]
    return tuple(
        Recipe(match["name"] or "", match["language"], match["text"])
        for match in _RECIPE.finditer(body)
    )


def recipe(name: str) -> Recipe:
    """Return the one of this name."""
    (found,) = [one for one in recipes() if one.name == name]
    return found


def linter(name: str) -> str | None:
    """Return the path of a linter, which a wheel may have put beside this interpreter."""
    places = (sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath))
    return shutil.which(name, path=os.pathsep.join(places))


def of_language(language: str) -> list[str]:
    """Return the names of those in a language."""
    return [one.name for one in recipes() if one.language == language]
