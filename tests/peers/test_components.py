"""diffusers, sentence-transformers and we choose the same files in the folders of a layout."""

import pytest

from tests.peers import components, diffusers, sentence_transformers
from tests.peers.comparison import compared, require_agreement
from tests.peers.conftest import Made, Maker


@pytest.fixture(scope="module")
def pipelines(make: Maker) -> list[Made]:
    """The pipelines of diffusers."""
    return make(components.named_pipelines(), components.pipeline)


@pytest.fixture(scope="module")
def modules(make: Maker) -> list[Made]:
    """The models of sentence-transformers."""
    return make(components.named_modules(), components.modules)


def test_we_warm_what_diffusers_opens_in_its_order(pipelines: list[Made]) -> None:
    cases = compared(pipelines, "diffusers", "auto", diffusers.outcome)
    assert any(case.theirs.refusal is None for case in cases)
    require_agreement(cases)


def test_we_warm_what_sentence_transformers_opens(modules: list[Made]) -> None:
    cases = compared(modules, "sentence-transformers", "auto", sentence_transformers.outcome)
    assert any(case.theirs.refusal is None for case in cases)
    require_agreement(cases)


def test_the_modules_that_have_weights_are_those_of_the_wheel() -> None:
    assert sentence_transformers.modules_with_weights() == set(sentence_transformers.WITH_WEIGHTS)
