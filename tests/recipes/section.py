"""The recipes of prefetch-cli-recipes(7): as printed, or for a checkpoint of the tests."""

import functools
import os
import re
import shlex
import shutil
import sysconfig
from dataclasses import dataclass

from tests.helpers import documents

PAGE = "prefetch-cli-recipes.7"
_MODEL = re.compile(r"/models/[\w.-]+")


@dataclass(frozen=True)
class Recipe:
    """A block of code, with the name and language from the comment above it."""

    name: str
    language: str
    text: str

    @property
    def models(self) -> set[str]:
        """The checkpoints it names."""
        return set(_MODEL.findall(self.text))

    def of(self, checkpoint: str) -> str:
        """Return the text for another checkpoint. Its path must need no quotes."""
        assert re.fullmatch(r"[\w./-]+", checkpoint), checkpoint
        return _MODEL.sub(lambda _: checkpoint, self.text)

    def words(self, checkpoint: str | None = None) -> list[str]:
        """Return the words of a script of one command."""
        text = self.text if checkpoint is None else self.of(checkpoint)
        # A shell drops an escaped newline; shlex makes it a word.
        return shlex.split(text.replace("\\\n", ""))


@functools.cache
def recipes() -> tuple[Recipe, ...]:
    """Return all blocks of the page, named or not."""
    found = documents.blocks(documents.page(PAGE))
    return tuple(Recipe(one.name, one.language, one.text) for one in found)


def recipe(name: str) -> Recipe:
    """Return the recipe with this name."""
    (found,) = [one for one in recipes() if one.name == name]
    return found


def linter(name: str) -> str | None:
    """Return the path of a linter; a wheel may have put it beside this interpreter."""
    places = (sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath))
    return shutil.which(name, path=os.pathsep.join(places))


def of_language(language: str) -> list[str]:
    """Return the names of the recipes in one language."""
    return [one.name for one in recipes() if one.language == language]
