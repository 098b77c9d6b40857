"""Secret: a parameter that names a secret instead of holding it.

Only the name travels, is stored, logged and hashed; the text is read where, and when, a task asks for it. So a run can be resumed
after the token was changed, and neither ``ps`` nor the store ever sees it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from flowlane.errors import FlowError
from flowlane.redaction import remember

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

__all__ = ["Secret"]

_FORMS: Final = "env:NAME or file:PATH"
_MAX: Final = 1 << 20  # bytes of a file: a secret, not a document


class Secret:
    """A secret by name: ``Secret("env:API_TOKEN")`` or ``Secret("file:/run/secrets/token")``.

    Annotate a workflow's parameter with it, and give the name: ``flow run etl.py -p token=env:API_TOKEN``. Pass it on to tasks as
    it is; there `reveal` reads it. Immutable; two are equal when they name the same.

    Raises ValueError for anything but a name of that form, without quoting it.
    """

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        scheme, colon, rest = name.partition(":") if isinstance(name, str) else ("", "", "")  # pyright: ignore[reportUnnecessaryIsInstance] - said to whoever has no checker
        if not colon or scheme not in ("env", "file") or not rest.strip():
            raise ValueError(f"a secret is named, not given: write {_FORMS}")
        self._name = name

    @property
    def name(self) -> str:
        """What it was made with."""
        return self._name

    def reveal(self) -> str:
        """The secret's text: the variable's value, or the file's without the newline at its end. Reads it at each call.

        Raises FlowError when there is none. From then on the text is masked in errors that this process tells of.
        """
        scheme, _, rest = self._name.partition(":")
        if scheme == "env":
            text = os.environ.get(rest)
            if text is None:
                raise FlowError(f"the environment variable {rest} of secret {self._name} is not set")
        else:
            try:
                with open(rest, encoding="utf-8") as file:
                    text = file.read(_MAX).rstrip("\r\n")
            except (OSError, ValueError) as error:
                reason = (getattr(error, "strerror", None) or type(error).__name__).lower()
                raise FlowError(f"secret {self._name} cannot be read: {reason}") from None
        remember(text)
        return text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._name == self._name

    def __hash__(self) -> int:
        return hash((Secret, self._name))

    def __repr__(self) -> str:
        return f"Secret({self._name!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Secret, (self._name,)

    def __flow_digest__(self) -> str:
        """For the cache: the name. A result that depends on what the secret says must not be cached."""
        return self._name

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        def named(value: Any) -> Secret:
            if isinstance(value, Secret):
                return value
            if not isinstance(value, str):
                raise ValueError(f"a secret is named, not given: write {_FORMS}")
            return cls(value)

        return core_schema.no_info_plain_validator_function(named)
