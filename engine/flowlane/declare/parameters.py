"""A workflow's parameters: read from the body's signature, coerced and checked by pydantic before the body runs.

A parameter is checked on its own, through a TypeAdapter of its annotation: so a parameter may have any name, and each
problem is told by parameter. Values given from Python are coerced as pydantic does by default ("5" is an int); texts
from a command line follow three rules: for a ``str`` the text as it is, JSON when it begins with ``[`` or ``{``, otherwise
pydantic's reading of strings. Defaults are the author's own and pass unchecked.
"""

from __future__ import annotations

import contextlib
import inspect
import types
import typing
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo

from flowlane.declare.callsite import caller, did_you_mean
from flowlane.errors import DefinitionError, ParameterError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

__all__ = ["Parameter", "Parameters"]

_SHOWN: Final = 3  # findings told of one error; a list of 10,000 may have 10,000


class Parameter(NamedTuple):
    """One parameter: its annotation as written, and what checks values."""

    name: str
    annotation: str
    required: bool
    default: Any
    literal: bool
    secret: bool
    adapter: TypeAdapter[Any]


class Parameters:
    """The parameters of one workflow. Raises DefinitionError when made from annotations that cannot be checked."""

    def __init__(self, fn: Callable[..., Any], workflow: str, where: str | None, scope: Mapping[str, Any]) -> None:
        self.workflow = workflow
        self.where = where
        self.signature = inspect.signature(fn)
        self._extra: str | None = None  # the name of **parameters
        namespace = {**scope, **_closure(fn)}
        module = getattr(inspect.unwrap(fn), "__globals__", {})
        self._all = {p.name: self._read(p, module, namespace) for p in self.signature.parameters.values()}

    def __iter__(self) -> typing.Iterator[Parameter]:
        """The parameters in order."""
        return iter(self._all.values())

    def arrange(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Values by parameter name, as the body's signature takes them (the call must fit); missing ones left out."""
        return dict(self.signature.bind_partial(*args, **kwargs).arguments)

    def call(self, values: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of the body for complete `values` by name."""
        bound = inspect.BoundArguments(self.signature, dict(values))
        return bound.args, bound.kwargs

    def validate(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """`values` coerced and checked, defaults filled in, in the order of the signature. Raises ParameterError."""
        return self._complete(values, {}, command_line=False)

    def admit(self, values: Mapping[str, Any], awaited: Collection[str]) -> dict[str, Any]:
        """`validate` where the values of parameters `awaited` are still to come: those are passed as they are."""
        checked = self._complete(values, {}, command_line=False, unchecked=awaited)
        return {name: values[name] if name in awaited else value for name, value in checked.items()}

    def parse(self, texts: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, Any]:
        """The same from a command line's `texts` and from decoded JSON `values`; a text counts over a value."""
        given = {name: value for name, value in values.items() if name not in texts}
        if self._extra is not None:
            known = {name for name in self._all if name != self._extra}
            extra = {name: value for name, value in {**given, **texts}.items() if name not in known}
            given = {name: value for name, value in given.items() if name in known}
            texts = {name: text for name, text in texts.items() if name in known}
            if extra:
                given[self._extra] = extra
        return self._complete(given, texts, command_line=True)

    def _complete(
        self,
        values: Mapping[str, Any],
        texts: Mapping[str, str],
        *,
        command_line: bool,
        unchecked: Collection[str] = (),
    ) -> dict[str, Any]:
        problems: list[str] = []
        hints: list[str] = []
        complete: dict[str, Any] = {}
        for name in (*texts, *values):
            if name not in self._all:
                close = did_you_mean(name, self._all)
                problems.append(f"no parameter {name!r}")
                known = ", ".join(self._all) or "none"
                hints.append(f"did you mean {close!r}?" if close else f"its parameters: {known}")
        for name, parameter in self._all.items():
            try:
                if name in unchecked:
                    complete[name] = None
                elif name in texts:
                    complete[name] = _from_text(parameter, texts[name])
                elif name in values:
                    complete[name] = parameter.adapter.validate_python(values[name])
                elif not parameter.required:
                    complete[name] = parameter.default
                else:
                    problems.append(f"no value for parameter {name!r}")
                    hints.append(_form(parameter, command_line))
            except ValidationError as error:
                problems.append(_wording(parameter, error))
                hints.append(_form(parameter, command_line))
        if problems:
            count = f"{len(problems)} problems with its parameters: " if len(problems) > 1 else ""
            raise ParameterError(
                f"workflow {self.workflow!r} has {count}{'; '.join(problems)}",
                where=self.where if command_line else caller(),
                hint=hints[0],
            )
        return complete

    def _read(self, parameter: inspect.Parameter, module: dict[str, Any], scope: Mapping[str, Any]) -> Parameter:
        name = parameter.name
        annotation = Any if parameter.annotation is parameter.empty else parameter.annotation
        written = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
        if isinstance(parameter.default, FieldInfo):
            raise DefinitionError(
                f"parameter {name!r} of workflow {self.workflow!r} has a pydantic Field as its default",
                where=self.where,
                hint=f"write {name}: Annotated[{written}, Field(...)] = default",
            )
        try:
            # asked for one at a time, so that the error can name the parameter
            holder = types.SimpleNamespace(__annotations__={name: annotation})
            resolved = typing.get_type_hints(holder, module, dict(scope), include_extras=True)[name]
        except Exception as error:  # noqa: BLE001 - it runs code of the user's
            raise DefinitionError(
                f"parameter {name!r} of workflow {self.workflow!r} is annotated {written}, "
                f"which cannot be evaluated: {error}",
                where=self.where,
                hint="annotations of parameters are used when it runs: import them outside `if TYPE_CHECKING:`",
            ) from None
        required = parameter.default is parameter.empty
        default = parameter.default
        literal = _is_text(resolved)
        if parameter.kind is parameter.VAR_POSITIONAL:
            required, default, literal, resolved = False, (), False, tuple.__class_getitem__((resolved, ...))
        elif parameter.kind is parameter.VAR_KEYWORD:
            required, default, literal, resolved = False, {}, False, dict.__class_getitem__((str, resolved))
            self._extra = name
        return Parameter(
            name, written, required, default, literal, "Secret" in written, self._adapter(name, written, resolved)
        )

    def _adapter(self, name: str, written: str, resolved: Any) -> TypeAdapter[Any]:
        try:
            try:
                return TypeAdapter(resolved, config=ConfigDict(arbitrary_types_allowed=True))
            except PydanticUserError as error:
                if error.code != "type-adapter-config-unused":  # a model, dataclass or TypedDict brings its own
                    raise
                return TypeAdapter(resolved)
        except Exception as error:  # noqa: BLE001 - so may the hooks by which a class tells pydantic about itself
            reason = str(error).strip().splitlines()
            raise DefinitionError(
                f"parameter {name!r} of workflow {self.workflow!r} is annotated {written}, "
                f"which cannot be checked: {reason[0] if reason else type(error).__name__}",
                where=self.where,
            ) from None


def _closure(fn: Any) -> dict[str, Any]:
    """The variables that the body takes from functions around it: annotations may name them too."""
    fn = inspect.unwrap(fn)
    found: dict[str, Any] = {}
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return found


def _is_text(annotation: Any) -> bool:
    """Whether a text is a value as it is: ``str``, with ``Annotated`` or ``| None`` around it."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _is_text(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(annotation) if member is not type(None)]
        return bool(members) and all(_is_text(member) for member in members)
    return annotation is str


def _from_text(parameter: Parameter, text: str) -> Any:
    adapter = parameter.adapter
    if parameter.literal:
        return adapter.validate_python(text)
    if text.lstrip()[:1] in ("[", "{"):
        return adapter.validate_json(text)
    if text == "null":  # as in JSON; for a text parameter it is text, and never comes here
        with contextlib.suppress(ValueError):
            return adapter.validate_python(None)
    return adapter.validate_strings(text)


def _wording(parameter: Parameter, error: ValidationError) -> str:
    findings = error.errors(include_url=False, include_context=False)
    parts: list[str] = []
    for finding in findings[:_SHOWN]:
        path = parameter.name
        for step in finding["loc"]:
            path += f"[{step}]" if isinstance(step, int) else f".{step}"
        text = finding["msg"].removeprefix("Value error, ").removeprefix("Input ")
        parts.append(f"{path}={'***' if parameter.secret else _short(finding['input'])}: {text}")
    if len(findings) > _SHOWN:
        parts.append(f"and {len(findings) - _SHOWN} more in {parameter.name}")
    return "; ".join(parts)


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a __repr__ of the user's that raises must not hide the finding
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _form(parameter: Parameter, command_line: bool) -> str:
    """How the parameter is to be given."""
    name, annotation = parameter.name, parameter.annotation
    if not command_line:
        return f"the parameter is {name}: {annotation}"
    if parameter.literal:
        return f"-p {name}=TEXT"
    if parameter.secret:
        return f"-p {name}=env:NAME or -p {name}=file:PATH: a secret is named, not given"
    core = annotation.partition("[")[0].rpartition(".")[2].lower()
    if core in ("list", "sequence", "set", "tuple", "frozenset", "iterable", "collection"):
        return f"-p '{name}=[...]' with a JSON list, for {annotation}; or --params FILE.json"
    if core in ("dict", "mapping", "typeddict"):
        return f"-p '{name}={{...}}' with a JSON object, for {annotation}; or --params FILE.json"
    return f"-p {name}=VALUE, where VALUE is read as {annotation}"
