"""The words that errors are made of."""

from __future__ import annotations

import pytest

from flowlane import task
from flowlane.errors import DefinitionError, with_article


@pytest.mark.parametrize(
    "told",
    [
        "a list",
        "an int",
        "an OrderedDict",
        "an Unhashable",
        "an Upload",
        "a uint8",
        "a UserDict",
        "a Union",
        "a generator",
        "an async generator",
        "a _Private",
    ],
)
def test_a_class_is_told_with_its_article(told: str) -> None:
    assert with_article(told.partition(" ")[2]) == told


def test_errors_use_it() -> None:
    with pytest.raises(DefinitionError, match="which is an int"):
        task.io(name=3)(print)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
