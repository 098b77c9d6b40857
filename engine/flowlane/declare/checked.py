"""What the pydantic models of options have in common: their kinds of numbers, and findings as words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import Field

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel, ValidationError

__all__ = ["MAX_SECONDS", "Seconds", "Timeout", "hint_of", "near", "wording"]

#: 31 years. More is a slip of units, and the platform's timers overflow not far beyond.
MAX_SECONDS: Final = 1e9

Seconds = Annotated[float, Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False)]
Timeout = Annotated[float, Field(gt=0, le=MAX_SECONDS, allow_inf_nan=False)]


def wording(error: ValidationError) -> str:
    """pydantic's findings as ``timeout=-1: should be greater than 0``, joined by semicolons."""
    parts: list[str] = []
    for finding in error.errors(include_url=False):
        text = finding["msg"].removeprefix("Value error, ")
        text = text.removeprefix("Input ")
        if finding["loc"]:
            name = str(finding["loc"][0])
            value = finding["input"]
            text = f"no field {name!r}" if finding["type"] == "extra_forbidden" else f"{name}={value!r}: {text}"
        parts.append(text)
    return "; ".join(dict.fromkeys(parts))


def hint_of(error: ValidationError) -> str | None:
    """The hint that one of the findings came with: a `PydanticCustomError` may have it in its context."""
    for finding in error.errors(include_url=False):
        hint = finding.get("ctx", {}).get("hint")
        if hint is not None:
            return str(hint)
    return None


def near(unknown: Mapping[str, Any], model: type[BaseModel]) -> str | None:
    """A hint for fields that `model` does not have."""
    from flowlane.declare.callsite import did_you_mean

    for name in unknown:
        close = did_you_mean(name, model.model_fields)
        return f"did you mean {close!r}?" if close else f"its fields: {', '.join(model.model_fields)}"
    return None
