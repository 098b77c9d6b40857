"""Small tasks of our own that graphs are made up with. They cost least in a thread; workers may import this module as well."""

from __future__ import annotations

from itertools import chain
from typing import Any

from flowlane.declare.task import task
from flowlane.errors import with_article
from flowlane.program import MISSING

__all__ = ["condition", "either", "flatten"]


@task.io
def condition(value: Any) -> Any:
    """A value that is there already, as the result of a task: what a condition on it hangs on."""
    return value


@task.io
def either(*values: Any) -> Any:
    """The first value that is there. It is told MISSING for one that is not, since None may be a value."""
    return next(value for value in values if value is not MISSING)


@task.io
def flatten(lists: Any) -> list[Any]:
    """The items of many lists as one list."""
    for index, each in enumerate(lists):
        if isinstance(each, (str, bytes)) or not hasattr(each, "__iter__"):
            raise TypeError(f"flatten() takes a list of lists, and item {index} is {with_article(type(each).__name__)}")
    return list(chain.from_iterable(lists))
