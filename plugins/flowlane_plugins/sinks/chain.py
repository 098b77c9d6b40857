"""structlog as the pipeline: a user's processors, then a last one of ours, for one event at a time.

A `Chain` never raises for what a processor does. ``structlog.DropEvent`` drops the event; any other exception, or a
result that is no mapping, sends the event on as it was before the processors, and is told once.

structlog is imported when the first chain is made. Its configuration is neither read nor changed: the logger is wrapped
with everything given explicitly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from flowlane.errors import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Chain", "Processor", "Rendered"]

#: As structlog has it: (logger, method name, event dictionary) → event dictionary.
Processor: TypeAlias = "Callable[[Any, str, Any], Any]"

#: Positional and keyword arguments for the method of the wrapped logger.
Rendered: TypeAlias = "tuple[tuple[Any, ...], dict[str, Any]]"


class Chain:
    """Runs events through `processors`, `render`, and then a method of `logger` named like the event's level."""

    def __init__(
        self, logger: Any, processors: Sequence[Processor], render: Callable[[Mapping[str, Any]], Rendered]
    ) -> None:
        import structlog  # 0.1 s: only a run that logs through it pays

        class EventLogger(structlog.BoundLoggerBase):
            def tell(self, method: str, event: Mapping[str, Any]) -> None:
                self._proxy_to_logger(method, **event)

        self.faults: list[str] = []
        self._logger = logger
        self._render = render
        self._told = False
        self._rendered = False
        # "event" is in the context so that it comes first: structlog appends it otherwise.
        self._wrapped: Any = structlog.wrap_logger(
            logger,
            processors=[*processors, self._last],
            wrapper_class=EventLogger,
            context_class=dict,
            cache_logger_on_first_use=True,
            event="",
        ).bind()

    def tell(self, event: Mapping[str, Any]) -> None:
        """One event, all the way. Raises only what the logger's own method raises."""
        method = event["level"]
        self._rendered = False
        try:
            self._wrapped.tell(method, event)
        except BaseException as error:  # a processor's SystemExit included
            if self._rendered:  # the logger itself: not the processors' doing
                raise
            self._tell_fault(error)
            args, kwargs = self._render(event)
            getattr(self._logger, method)(*args, **kwargs)

    def _last(self, _logger: Any, _method: str, event: Any) -> Rendered:
        if not isinstance(event, Mapping):
            raise TypeError(
                f"the last processor returned {type(event).__name__}, not an event dictionary; "
                "leave a renderer out of the chain, the sink renders"
            )
        rendered = self._render(event)  # pyright: ignore[reportUnknownArgumentType] - a mapping of anything
        self._rendered = True
        return rendered

    def _tell_fault(self, error: BaseException) -> None:
        if not self._told:
            self._told = True
            failure = Failure.of(error)
            self.faults.append(
                f"a processor raised {failure.type}: {failure.message}; such events are logged without processors"
            )
