"""``flow show``: one run, or one task of it.

Tasks are a table, folded by the task's name as declared when there are many; what failed comes last, so that it is what stands on
the screen. A value is shown only where its seal holds, and without importing anything of the user's: see ``storage.glimpse``.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import click

from flowlane.cli import options
from flowlane.cli.eventfile import resizes
from flowlane.cli.runs import COLOURS, MARKS, run_fields
from flowlane.cli.terminal import DataOutput, inert
from flowlane.core.elements import CHAIN, GRAPH, TREE
from flowlane.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flowlane.cli.record import EventLog
    from flowlane.cli.terminal import Page
    from flowlane.past import Attempt, Past
    from flowlane.runtime.adapting import Change
    from flowlane.storage.port import ResultRef, Store, StoredSession

__all__ = ["command"]

_FOLDED: Final = 40  # more tasks are told by the name of their function
_FAILURES: Final = 3  # shown whole unless all are asked for
_FRAMES: Final = 4  # lines of the user's code of one that fails alone
_READ_MAX: Final = 16 << 20  # bytes of a result that are read to tell what it is
_TEXT_MAX: Final = 4096  # bytes of a result that is shown as text
_OUTPUT_MAX: Final = 20  # lines of what a task printed


@click.command("show", short_help="show a run that is stored, or a task of it")
@options.run
@click.argument("task", metavar="[TASK]", required=False)
@click.option("--all", "everything", is_flag=True, help="Every task by itself, and every failure whole.")
@options.as_json
def command(run: str, task: str | None, everything: bool, as_json: bool) -> int:
    """Show RUN (a name, an id or its beginning; "last" unless given): parameters, sessions, tasks, and last what failed.

    With TASK everything that is known about that task: its attempts over all sessions, what it waited for, its result, its
    error, and what it printed.
    """
    from flowlane.cli.record import EventLog
    from flowlane.cli.state import existing_store
    from flowlane.past import look

    settings = load_settings()
    with DataOutput() as data, existing_store(settings) as store:
        past = look(store, store.find(run), task)
        page = data.page()
        if task is not None:
            log = EventLog(settings.state_dir.value)
            element = past.number(task)
            if as_json:
                data.write(_task_document(store, past, element, log))
                return 0
            _show_task(page, store, past, element, log)
        elif as_json:
            data.write(_run_document(store, past))
            return 0
        else:
            log = EventLog(settings.state_dir.value)
            _show_run(page, store, past, resizes(log.path(past.run.id)), everything=everything)
        data.write(page.text())
    return 0


# ── what is stored beside the tasks ───────────────────────────────────────────────────────────────────────────────────


def _params(store: Store, past: Past) -> Mapping[str, Any] | str:
    """The run's parameters with stand-ins in them, or why they cannot be shown. A secret is its name: more is not stored."""
    from flowlane.errors import StoreError
    from flowlane.storage.asked import unseal_asked
    from flowlane.storage.glimpse import glimpse

    try:
        params = unseal_asked(store.params(past.run.id), past.run.id, store.secret).params
        if params is None:
            return "they could not be stored"
        found: Any = glimpse(params)
    except StoreError as error:
        return error.message
    except ValueError as error:
        return str(error)
    return found if isinstance(found, dict) else "they are not what was written"  # pyright: ignore[reportUnknownVariableType]


def _sessions(store: Store, past: Past) -> list[StoredSession]:
    earlier = [store.session(past.run.id, number) for number in range(1, past.session.number)]
    return [*earlier, past.session]


def _result(store: Store, ref: ResultRef | None, size: int) -> dict[str, Any] | None:
    """A result as fields: bytes, codec, type, and text where it is plain and small; or what is wrong with it."""
    from flowlane.errors import StoreError
    from flowlane.storage.blob import bound_to, unseal
    from flowlane.storage.glimpse import StandIn, glimpse, kind_of, shown

    if ref is None:
        return None
    fields: dict[str, Any] = {"bytes": size, "codec": None, "type": None, "text": None, "run": ref[0], "fault": None}
    if size > _READ_MAX:
        return fields
    try:
        payload = unseal(store.read(ref), store.secret, bound_to(ref))
        fields["codec"] = payload.codec.name.lower()
        value = glimpse(payload)
    except StoreError as error:
        fields["fault"] = error.message
        return fields
    except ValueError:
        return fields
    fields["type"] = kind_of(value)
    if size <= _TEXT_MAX and not isinstance(value, StandIn):
        fields["text"] = shown(value)
    return fields


def _printed(log: EventLog, past: Past, task: str, attempts: Sequence[Attempt]) -> tuple[str, str] | None:
    """What the latest attempt that printed something printed, and where it is."""
    for number in sorted({attempt.number for attempt in attempts}, reverse=True):
        path = log.output_path(past.run.id, task, number)
        try:
            with open(path, encoding="utf-8", errors="backslashreplace", newline="") as file:
                return file.read(), path
        except OSError:
            continue
    return None


# ── as JSON ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _plain(value: Any) -> Any:
    from flowlane.storage.glimpse import shown

    if value is None or isinstance(value, (bool, int, float)) or (isinstance(value, str) and len(value) <= 200):
        return value
    return shown(value)


def _run_document(store: Store, past: Past) -> str:
    from flowlane.cli.document import document, seconds, timestamp

    params = _params(store, past)
    head = {
        "run": run_fields(replace(past.run, counts=past.counts()), past.owner, past.state),
        "params": {name: _plain(value) for name, value in params.items()} if not isinstance(params, str) else None,
    }
    sessions = [
        {
            "number": session.number,
            "started": timestamp(session.started),
            "ended": timestamp(session.ended),
            "duration_s": seconds(session.started, session.ended),
            "tasks": session.tasks,
            "pid": session.owner.pid,
            "host": session.owner.host,
            "versions": session.versions,
        }
        for session in _sessions(store, past)
    ]
    return document(head, sessions=sessions, tasks=(_task_fields(past, element) for element in range(past.size)))


def _task_fields(past: Past, element: int) -> dict[str, Any]:
    last = past.last(element)
    owner = past.census.place(element).owner
    fields: dict[str, Any] = {
        "name": past.names[element],
        "task": past.task(element),
        "kind": past.kind(element),
        "executor": past.executor(element),
        "part_of": past.names[owner] if owner >= 0 else None,
        "state": str(past.state_of(element)),
        "restored": past.restored(element),
        "attempts": last.number if last is not None else 0,
    }
    if last is not None:
        fields |= _attempt_fields(last)
    if past.is_container(element):
        fields["became"] = {"what": _what(past, element), "tasks": past.part_counts(element)}
    return fields


def _attempt_fields(attempt: Attempt) -> dict[str, Any]:
    from flowlane.cli.document import timestamp

    failure = attempt.failure
    return {
        "reason": str(attempt.reason),
        "ready": timestamp(attempt.ready),
        "started": timestamp(attempt.started),
        "ended": timestamp(attempt.ended),
        "waited_s": attempt.waited,
        "duration_s": attempt.duration,
        "worker": attempt.worker,
        "cpu_s": attempt.cpu,
        "peak_rss": attempt.peak_rss,
        "error": None if failure is None else failure.to_dict(),
    }


def _task_document(store: Store, past: Past, element: int, log: EventLog) -> str:
    from flowlane.cli.document import document
    from flowlane.past import every_attempt

    name = past.names[element]
    attempts = every_attempt(store, past, name)
    last = past.last(element)
    printed = _printed(log, past, name, attempts)
    head = {
        "run": run_fields(past.run, past.owner, past.state),
        "task": _task_fields(past, element),
        "result": None if last is None else _result(store, last.result, last.size),
        "output": None if printed is None else printed[0],
    }
    return document(
        head,
        upstreams=[{"name": past.names[up], "state": str(past.state_of(up))} for up in past.upstreams(element)],
        downstreams=[{"name": past.names[down], "state": str(past.state_of(down))} for down in _readers(past, element)],
        attempts=[
            {"session": each.session, "attempt": each.number, "state": str(each.state), **_attempt_fields(each)}
            for each in attempts
        ],
    )


def _readers(past: Past, element: int) -> list[int]:
    """Who waits for a task, among those that are declared, or have come into being, together with it."""
    place = past.census.place(element)
    if place.kind != GRAPH:
        return []
    start = element - place.number
    upstreams = past.census.graph(start).upstreams
    return [start + down for down, ups in enumerate(upstreams) if place.number in ups]


def _what(past: Past, element: int) -> str:
    """What a task has become: "map of 1,000", "tree of 3 merges", "2 tasks"."""
    from flowlane.cli.words import counted

    parts = past.parts(element)
    kind = past.census.place(parts[0]).kind if parts else GRAPH
    if kind == TREE:
        return f"tree of {counted(len(parts), 'merge')}"
    return f"map of {len(parts):,}" if kind == CHAIN else counted(len(parts), "task")


# ── for people ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _show_run(page: Page, store: Store, past: Past, changes: Sequence[Change], *, everything: bool) -> None:
    from flowlane.runtime.adapting import summed_up

    _show_head(page, store, past)
    for sentence in summed_up(changes):
        page.line(f"  adapted {inert(sentence)}")
    if not past.size:
        return
    page.line()
    own = range(len(past.description.names))
    if everything:
        page.write(_unfolded(past, range(past.size)))
    elif len(own) > _FOLDED:
        page.write(_folded(past))
    else:
        page.write(_unfolded(past, own))
    if not everything:
        _show_containers(page, past)
        if past.size > len(own) or len(own) > _FOLDED:
            page.line(f"`flow show {past.run.name} --all` lists all {past.size:,} tasks")
    _show_failures(page, past, everything=everything)


def _show_head(page: Page, store: Store, past: Past) -> None:
    from flowlane.cli.words import ago, counted, date, duration

    run, now = past.run, time.time_ns()
    mark = page.paint(MARKS.get(past.state, "■"), f"1;{COLOURS.get(past.state, '33')}")
    took = duration((run.ended - run.started) / 1e9) if run.ended else ""
    how = f"{past.state} after {took}" if took else past.state
    page.line(
        f"{mark} {inert(run.workflow)}  {inert(run.name)} ({run.id})  {how}   {date(run.started)}, {ago(run.started, now)}"
    )
    if past.state == "stopped":
        owner = past.session.owner
        page.line(f"  its process {owner.pid} on {inert(owner.host)} is gone and did not say how it ended")
    elif past.owner is not None:
        page.line(f"  under way in process {past.owner.pid} on {inert(past.owner.host)}")
    if run.error and past.state not in ("succeeded", "failed"):
        page.line(f"  because    {_line(run.error)}")
    _show_params(page, _params(store, past))
    if run.parent:
        page.line(f"  forked from {inert(run.parent)}")
    sessions = _sessions(store, past)
    for session in sessions if len(sessions) > 1 else ():
        took = f"took {duration((session.ended - session.started) / 1e9)}" if session.ended else "did not end"
        if session is past.session and past.owner is not None:
            took = "under way"
        place = f"process {session.owner.pid} on {inert(session.owner.host)}"
        page.line(f"  session {session.number}  {date(session.started)}  {took}, {place}, {inert(session.versions)}")
    restored = sum([past.restored(element) for element in range(past.size) if not past.is_container(element)])
    told = past.counts()
    counts = [f"{count:,} {state}" for state, count in told.items()]
    if restored:
        counts.append(f"{restored:,} of them restored")
    page.line(f"  {counted(sum(told.values()), 'task')}: {' · '.join(counts)}" if counts else "  no tasks")


def _show_params(page: Page, params: Mapping[str, Any] | str) -> None:
    from flowlane.secret import Secret
    from flowlane.storage.glimpse import shown

    if isinstance(params, str):
        page.line(f"  parameters cannot be shown: {_line(params)}")
        return
    for name, value in params.items():
        text = f"secret {value.name}" if isinstance(value, Secret) else shown(value, 100)
        page.line(f"  {inert(str(name))} = {inert(text)}")


def _line(text: str) -> str:
    from flowlane.cli.words import cut

    return cut(inert(text))


_HEAD: Final = ("task", "state", "attempts", "waited", "took", "executor", "worker")
_RIGHT: Final = "attempts waited took tasks total longest"


def _unfolded(past: Past, elements: range) -> str:
    from flowlane.cli.words import table

    return table([_HEAD, *[_row(past, element) for element in elements]], _RIGHT)


def _show_containers(page: Page, past: Past) -> None:
    """A line for each task that has become others: what, and what these came to."""
    from flowlane.cli.words import table

    rows = [
        (inert(past.names[each]), _what(past, each), _counted(past.part_counts(each))) for each in past.containers()
    ]
    if rows:
        page.line()
        page.write(table([("task", "became", ""), *rows], ""))


def _counted(counts: Mapping[str, int]) -> str:
    return " · ".join([f"{count:,} {state}" for state, count in counts.items()])


def _row(past: Past, element: int) -> tuple[str, ...]:
    last = past.last(element)
    state = str(past.state_of(element))
    if past.restored(element):
        state = "restored"
    cells = [inert(past.names[element]), state]
    if last is None:
        cells += ["-", "-", "-", inert(past.executor(element) or "-"), ""]
    else:
        tries = "-" if state == "cached" or not last.number else str(last.number)
        cells += [tries, _time(last.waited), _time(last.duration)]
        cells += [inert(last.executor), inert(last.worker or "")]
    return tuple(cells)


def _time(seconds: float | None) -> str:
    from flowlane.cli.words import duration

    return "-" if seconds is None else duration(seconds)


def _folded(past: Past) -> str:
    """A line for each task as declared and state that its calls are in: how many, and their times."""
    from flowlane.cli.words import table

    groups: dict[tuple[str, str], list[Attempt | None]] = {}
    for element in range(len(past.description.names)):
        state = "restored" if past.restored(element) else str(past.state_of(element))
        groups.setdefault((past.description.tasks[element], state), []).append(past.last(element))
    rows = [("task", "state", "tasks", "attempts", "total", "longest", "executor")]
    for (task, state), attempts in sorted(groups.items(), key=lambda item: list(groups).index(item[0])):
        times = [each.duration for each in attempts if each is not None and each.duration is not None]
        tries = sum([each.number for each in attempts if each is not None])
        executors = dict.fromkeys([each.executor for each in attempts if each is not None])
        rows.append(
            (
                inert(task),
                state,
                f"{len(attempts):,}",
                f"{tries:,}" if tries else "-",
                _time(sum(times) if times else None),
                _time(max(times, default=None)),
                inert(", ".join(executors)),
            )
        )
    return table(rows, _RIGHT)


def _show_failures(page: Page, past: Past, *, everything: bool) -> None:
    from flowlane.cli.summary import show_failure
    from flowlane.cli.words import listed

    failures = past.failures()
    if not failures:
        return
    stopped = past.stopped_by()
    shown = failures if everything else failures[:_FAILURES]
    frames = _FRAMES if len(failures) == 1 else 1
    for element in shown:
        last = past.last(element)
        failure = last.failure if last is not None else None
        if last is None or failure is None:
            continue
        page.line()
        show_failure(page, last, failure, frames)
        if of := stopped.get(element):
            page.line(f"  stopped  {listed([past.names[each] for each in of])}")
    if left := failures[len(shown) :]:
        page.line(f"and {len(left)} more: {listed([past.names[each] for each in left])}")


def _show_task(page: Page, store: Store, past: Past, element: int, log: EventLog) -> None:
    from flowlane.cli.words import date, listed, path_of, table
    from flowlane.past import every_attempt

    name = past.names[element]
    state = str(past.state_of(element))
    restored = ", restored" if past.restored(element) else ""
    page.line(
        f"{page.paint(inert(name), '1')}  {state}{restored}   of {inert(past.run.workflow)}  {inert(past.run.name)}"
    )
    executor = past.executor(element)
    where = "a workflow" if executor is None else f"{past.kind(element)} on {inert(executor)}"
    page.line(f"  task      {inert(past.task(element))}, {where}")
    owner = past.census.place(element).owner
    if owner >= 0:
        page.line(f"  part of   {inert(past.names[owner])}")
    if past.is_container(element):
        page.line(f"  became    {_what(past, element)}: {_counted(past.part_counts(element))}")
    upstreams = past.upstreams(element)
    if upstreams:
        names = [f"{past.names[up]} ({past.state_of(up)})" for up in upstreams]
        page.line(f"  inputs    {listed(names)}")
    if readers := _readers(past, element):
        page.line(f"  read by   {listed([past.names[down] for down in readers])}")
    way = past.way(element)
    if len(way) > 1:
        page.line(f"  way       {path_of([past.names[each] for each in way])}")
    attempts = every_attempt(store, past, name)
    last = past.last(element)
    if last is not None:
        _show_result(page, _result(store, last.result, last.size), last)
    if attempts:
        page.line()
        rows = [("session", "attempt", "state", "reason", "started", "waited", "took", "worker")]
        rows += [
            (
                str(each.session),
                str(each.number or "-"),
                str(each.state),
                str(each.reason),
                date(each.started) if each.started else "-",
                _time(each.waited),
                _time(each.duration),
                inert(each.worker or ""),
            )
            for each in attempts
        ]
        page.write(table(rows, "session attempt waited took"))
    _show_printed(page, _printed(log, past, name, attempts))
    _show_error(page, attempts)


def _show_result(page: Page, result: Mapping[str, Any] | None, last: Attempt) -> None:
    from flowlane.cli.words import size

    if result is None:
        if last.unstored:
            page.line(f"  result    it could not be stored: {_line(last.unstored)}")
        return
    if result["fault"]:
        page.line(f"  result    {_line(result['fault'])}")
    elif result["text"] is not None:
        page.line(f"  result    {_line(result['text'])}")
    else:
        kind = " ".join([str(each) for each in (result["type"], result["codec"] and f"as {result['codec']}") if each])
        page.line(f"  result    {_line(kind)}{', ' if kind else ''}{size(result['bytes'])}")


def _show_printed(page: Page, printed: tuple[str, str] | None) -> None:
    from flowlane.cli.words import cut
    from flowlane.loader import shown_path

    if printed is None:
        return
    text, path = printed
    lines = text.rstrip().split("\n")
    page.line()
    if len(lines) > _OUTPUT_MAX:
        page.line(f"printed  … {len(lines) - _OUTPUT_MAX:,} more lines in {inert(shown_path(path))}")
    else:
        page.line("printed")
    for line in lines[-_OUTPUT_MAX:]:
        page.line(f"  {cut(inert(line.rstrip().rpartition(chr(13))[2].expandtabs(4)))}".rstrip())


def _show_error(page: Page, attempts: Sequence[Attempt]) -> None:
    """The latest error with its traceback."""
    failed = [each for each in attempts if each.failure is not None]
    if not failed:
        return
    failure = failed[-1].failure
    assert failure is not None
    page.line()
    text = failure.traceback.rstrip() or failure.line
    *above, last = inert(text, newlines=True).split("\n")
    for line in above:
        page.line(_line(line))
    page.line(page.paint(_line(last), "31"))
    for note in failure.notes:
        page.line(f"  note  {_line(note)}")
