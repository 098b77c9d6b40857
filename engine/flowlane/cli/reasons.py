"""Why a task is in the state that it is in, in a few sentences. Decides and words; prints nothing.

A sentence names what somebody can look at next: the task that failed, the process that is gone, the verb to go on with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from flowlane.cli.words import ago, counted, date, duration, path_of, quoted
from flowlane.core.states import DONE, Reason, TaskState
from flowlane.core.tally import FAULTY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowlane.past import Attempt, Past
    from flowlane.storage.port import ResultRef, Store

__all__ = ["Explanation", "explain", "explain_cache", "explain_run"]

_NAMES: Final = 8
_NOTES: Final = 3
_ERROR_MAX: Final = 200
_ORDINALS: Final = ("first", "second", "third", "fourth", "fifth")


@dataclass(slots=True)
class Explanation:
    """`sentences` for people; `facts` the same as plain data."""

    state: str
    sentences: list[str] = field(default_factory=list[str])
    facts: dict[str, Any] = field(default_factory=dict[str, Any])


def explain_run(past: Past) -> Explanation:
    """Why a run is where it is, as far as no task has to be named; its failed tasks say the rest."""
    run, counts, failures = past.run, past.counts(), past.failures()
    made = Explanation(past.state, facts={"counts": counts, "failed": [past.names[each] for each in failures]})
    told = ", ".join([f"{count:,} {state}" for state, count in counts.items()]) or "no tasks"
    made.sentences.append(f"run {run.name} {'is' if past.owner is not None else 'ended'} {past.state}: {told}")
    if past.state == "stopped":
        made.sentences[0] = f"run {run.name} did not end, because {_gone(past)}: {told}"
    elif run.error and not failures:
        made.sentences.append(_short(run.error))
    if len(failures) > 1:
        made.sentences.append(f"{_listed([past.names[each] for each in failures])} failed of themselves")
    if not failures:
        made.sentences.append(f"`flow why {run.name} TASK` tells of a task")
    return made


def explain(store: Store, past: Past, element: int, attempts: Sequence[Attempt], now: int) -> Explanation:
    """Why the task `element` is where it is. `attempts` are those over all sessions; `store` is asked for other runs' part."""
    state = past.state_of(element)
    last = past.last(element)
    made = Explanation(str(state))
    name = past.names[element]
    if past.restored(element) and last is not None:
        made.facts["restored"] = True
        _restored(made, past, last, name, now)
        if state is TaskState.CACHED:
            _cached_in(made, store, past, last.result, now)
        return made
    match state:
        case TaskState.EXPANDED:
            _expanded(made, past, element, name)
        case TaskState.SKIPPED:
            _skipped(made, past, element, last, name)
        case TaskState.SUCCEEDED if past.is_container(element):
            _expanded(made, past, element, name)
        case TaskState.FAILED if past.is_container(element) and last is not None and not last.failure:
            _expanded(made, past, element, name)
        case TaskState.SUCCEEDED:
            _succeeded(made, store, past, last, name, now)
            _losses(made, attempts, last, name)
        case TaskState.CACHED:
            made.sentences.append(
                f"{name} was not run: a result with the same inputs and the same code was in the cache"
            )
            _cached_in(made, store, past, last.result if last is not None else None, now)
        case TaskState.FAILED | TaskState.TIMED_OUT | TaskState.CRASHED:
            _failed(made, past, last, name, attempts, now)
        case TaskState.UPSTREAM_FAILED:
            if past.parts(element):
                _expanded(made, past, element, name)
            _upstream_failed(made, past, element, name)
        case TaskState.CANCELLED:
            _cancelled(made, past, last, name, now)
        case TaskState.UNKNOWN:
            _unknown(made, past, name, attempts)
        case TaskState.RUNNING:
            _running(made, past, last, name, now)
        case TaskState.RETRYING:
            _retrying(made, past, last, name, now)
        case TaskState.READY | TaskState.PENDING:
            _waiting(made, past, element, name, now)
            _losses(made, attempts, last, name)
    return made


def _losses(made: Explanation, attempts: Sequence[Attempt], last: Attempt | None, name: str) -> None:
    """What was lost on a cluster on the way: results of its own, which it made again, and what it was to read."""
    own = [each for each in attempts if last is not None and each.session == last.session]
    again = sum([each.state in DONE for each in own[:-1]])
    if again:
        made.facts["made_again"] = again
        times = "once" if again == 1 else f"{again} times"
        made.sentences.append(
            f"its result was lost {times} with the machine that held it, before everybody had read it: {name} ran again"
        )
    bereft = [each for each in own if each.reason is Reason.RESULT_LOST]
    if bereft:
        made.facts["waited_again"] = len(bereft)
        made.sentences.append(
            f"it had to wait once more for what it reads{_error(bereft[-1])}; that counts as no attempt of its retries"
        )


# ── done ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _succeeded(made: Explanation, store: Store, past: Past, last: Attempt | None, name: str, now: int) -> None:
    if last is None:
        return
    made.sentences.append(
        f"{name} succeeded {date(last.ended)}, {ago(last.ended, now)}{_at_attempt(last)}: it ran for {_took(last)} on"
        f" {_place(last)}{_after_waiting(last)}"
    )
    if last.unstored:
        made.sentences.append(
            f"its result could not be stored, so a resume would run it again: {_short(last.unstored)}"
        )
    miss = explain_miss(store, past, last)
    if miss is not None and miss.facts["entry"]:
        made.sentences += miss.sentences
        made.facts["miss"] = miss.facts


def _restored(made: Explanation, past: Past, last: Attempt, name: str, now: int) -> None:
    where = ""
    if last.result is not None and last.result[0] == past.run.id:
        where = f"session {last.result[1]}"
    elif past.run.parent and past.session.number == 1:
        where = f"run {past.run.parent}, which this one was forked from,"
    made.sentences.append(
        f"{name} was not run in session {past.session.number}: {where or 'an earlier one'} had finished it"
        f" {date(last.ended)}, {ago(last.ended, now)}"
    )


def _cached_in(made: Explanation, store: Store, past: Past, ref: ResultRef | None, now: int) -> None:
    """Since when a result is there, and which run made it."""
    if ref is None:
        made.sentences.append("the run that had made the result was removed since")
        return
    made.facts["from"] = {"run": ref[0], "session": ref[1]}
    run = _run_name(store, ref[0])
    ended = _ended(store, ref)
    since = f" {date(ended)}, {ago(ended, now)}" if ended else ""
    made.sentences.append(f"run {run} made it{since}" if ref[0] != past.run.id else f"this run made it{since}")


def _run_name(store: Store, run_id: str) -> str:
    from flowlane.errors import UnknownRun

    try:
        return f"{store.find(run_id).name} ({run_id[:6]})"
    except UnknownRun:
        return f"{run_id[:6]}, which was removed since,"


def _ended(store: Store, ref: ResultRef) -> int:
    from flowlane.errors import FlowError

    run_id, session, element, attempt = ref
    try:
        for row in store.attempts(run_id, session, element):
            if row.attempt == attempt:
                return row.ended
    except FlowError:  # that run was removed
        pass
    return 0


def _expanded(made: Explanation, past: Past, element: int, name: str) -> None:
    """Of what has become others: how they fare, and the first that failed."""
    counts = past.part_counts(element)
    made.facts["parts"] = counts
    state = past.state_of(element)
    told = ", ".join([f"{count:,} {each}" for each, count in counts.items()]) or "nothing"
    verb = "has become" if state is TaskState.EXPANDED else f"{state}; it had become"
    made.sentences.append(f"{name} {verb} {counted(sum(counts.values()), 'task')}: {told}")
    last = past.last(element)
    if last is not None and last.reason is Reason.ENOUGH:
        made.sentences.append("as many of them had succeeded as were wanted; the others were not needed")
    bad = [part for part in past.parts(element) if past.state_of(part) in FAULTY]
    if bad:
        made.facts["failed"] = [past.names[each] for each in bad]
        shown = _listed([past.names[each] for each in bad])
        made.sentences.append(f"{shown} failed; `flow why {past.run.name} {quoted(past.names[bad[0]])}` tells more")
    if state is TaskState.EXPANDED and past.owner is None:
        made.sentences.append(f"{_gone(past)}; `flow resume {past.run.name}` goes on with it")


def _skipped(made: Explanation, past: Past, element: int, last: Attempt | None, name: str) -> None:
    if last is None:
        return
    if last.reason is Reason.SKIP_RAISED:
        made.sentences.append(f"{name} was skipped by its own word: it raised Skip, or its item did not pass a filter")
        return
    ups = past.upstreams(element)
    if last.reason is Reason.NOT_CHOSEN:
        of = [past.names[up] for up in ups if past.state_of(up) in DONE]
        made.facts["not_chosen_by"] = of
        made.sentences.append(f"{name} was skipped: it stands under a condition that did not hold")
        if of:
            made.sentences.append(
                f"what it waits for: {_listed(of)}; `flow show {past.run.name} {quoted(of[0])}` shows a value"
            )
        return
    skipped = [past.names[up] for up in ups if past.state_of(up) is TaskState.SKIPPED]
    made.facts["skipped_by"] = skipped
    if not skipped:
        made.sentences.append(f"{name} was skipped, because what it waits for ended so that it need not run")
        return
    made.sentences.append(f"{name} was skipped, because {_listed(skipped)} was")
    made.sentences.append(f"`flow why {past.run.name} {quoted(skipped[0])}` tells more")


# ── ended badly ───────────────────────────────────────────────────────────────────────────────────────────────────────

_ENDINGS: Final = {
    Reason.RAISED: "raised",
    Reason.REJECTED: "was refused before it began",
    Reason.ATTEMPT_TIMEOUT: "ran into its timeout",
    Reason.TOTAL_TIMEOUT: "ran into its total timeout",
    Reason.WORKER_DIED: "lost its worker",
    Reason.RESULT_LOST: "found a result gone that it reads",
    Reason.RETURNED: "succeeded, and lost their result",
}


def _failed(
    made: Explanation, past: Past, last: Attempt | None, name: str, attempts: Sequence[Attempt], now: int
) -> None:
    if last is None:
        return
    what = {
        TaskState.TIMED_OUT: "timed out",
        TaskState.CRASHED: "crashed: its worker died",
    }.get(last.state, "failed")
    made.sentences.append(f"{name} {what} {date(last.ended)}, {ago(last.ended, now)}{_at_attempt(last)}{_error(last)}")
    if last.failure is not None:  # hints are among them
        made.sentences += [_short(note) for note in last.failure.notes[:_NOTES]]
    if last.worker:  # else it is a map that could not be begun, or arguments that nobody could be given
        made.sentences.append(f"it ran for {_took(last)} on {_place(last)}{_after_waiting(last)}")
    made.facts["attempts"] = [
        {
            "session": each.session,
            "attempt": each.number,
            "state": str(each.state),
            "reason": str(each.reason),
            "error": None if each.failure is None else each.failure.line,
        }
        for each in attempts
    ]
    _retries(made, [each for each in attempts if each.session == last.session], last)
    made.sentences.append(
        f"`flow resume {past.run.name}` tries it again; `flow logs {quoted(f'{past.run.name}/{name}')}` tells more"
    )


def _retries(made: Explanation, attempts: Sequence[Attempt], last: Attempt) -> None:
    """The retry policy, as far as it was seen at work."""
    earlier = [each for each in attempts if each.number < last.number]
    if not earlier:
        made.sentences.append("it was tried once: it has no retries, or none for this error")
        return
    pauses = [
        duration(max(0, after.ready - before.ended) / 1e9)
        for before, after in pairwise(attempts)
        if before.ended and after.ready
    ]
    errors = list(dict.fromkeys([_ENDINGS.get(each.reason, str(each.reason)) for each in earlier]))
    text = f"it was tried {last.number} times (attempts before {_listed(errors)})"
    if pauses:
        text += f", with pauses of {_listed(pauses)}"
    made.sentences.append(f"{text}; no attempt was left, or none for this error")


def _upstream_failed(made: Explanation, past: Past, element: int, name: str) -> None:
    way = past.way(element)
    names = [past.names[each] for each in way]
    made.facts |= {"root": names[0], "path": names}
    what = "did not come to its end" if past.parts(element) else "never began"
    if len(way) == 1:
        made.sentences.append(f"{name} {what}, because something that it depends on did not succeed")
        return
    root = past.last(way[0])
    state = past.state_of(way[0])
    ended = {TaskState.CANCELLED: "was cancelled", TaskState.UNKNOWN: "is unknown"}.get(state, state.replace("_", " "))
    made.sentences.append(f"{name} {what}, because {names[0]} {ended}{_error(root)}")
    made.sentences.append(f"the way from it: {path_of(names)}")
    made.sentences.append(f"`flow why {past.run.name} {quoted(names[0])}` tells more of {names[0]}")


def _cancelled(made: Explanation, past: Past, last: Attempt | None, name: str, now: int) -> None:
    if last is None:
        return
    begun = f"was stopped after {_took(last)} on {_place(last)}" if last.started else "was never begun"
    match last.reason:
        case Reason.FAIL_FAST:
            failures = past.failures()
            first = past.names[failures[0]] if failures else "another task"
            made.facts["stopped_by"] = first
            why = f"{first} had failed, and this workflow stops at the first failure (on_failure='fail_fast')"
        case Reason.NOT_NEEDED:
            why = "others were first, and nobody waited for it any more"
        case Reason.DEADLINE:
            why = "the run's time was up (its deadline)"
        case Reason.DRAINED:
            why = "the run was told to begin nothing new"
        case _:
            why = "it was told to stop" if past.state in ("succeeded", "failed") else "the run was told to stop"
    made.sentences.append(f"{name} {begun}, because {why}: {date(last.ended)}, {ago(last.ended, now)}")
    if past.run.error and last.reason is not Reason.FAIL_FAST:
        made.sentences.append(f"the run ended {past.state}: {_short(past.run.error)}")
    made.sentences.append(f"`flow resume {past.run.name}` goes on with it")


def _unknown(made: Explanation, past: Past, name: str, attempts: Sequence[Attempt]) -> None:
    earlier = [each for each in attempts if each.state is not TaskState.UNKNOWN]
    began = earlier[-1] if earlier else None
    if began is None:
        seen = ""
    elif began.state in DONE:
        seen = f": session {began.session} saw it succeed {date(began.ended)}, and its value cannot be had any more"
    elif began.state is TaskState.RUNNING:
        seen = f": it had begun {date(began.started)} when session {began.session} stopped"
    else:
        seen = f": in session {began.session} it {_ENDINGS.get(began.reason, str(began.state))}{_error(began)}"
    made.sentences.append(f"nobody knows what became of {name}{seen}; it is at_most_once, so it was not run again")
    made.sentences.append(f"find out what it did; if it may run again: flow resume {past.run.name} --rerun {name}")


# ── not ended ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _gone(past: Past) -> str:
    owner = past.session.owner
    return f"process {owner.pid} on {owner.host} is gone"


def _running(made: Explanation, past: Past, last: Attempt | None, name: str, now: int) -> None:
    if last is None:
        return
    if past.owner is None:
        since = f"{date(last.started)}, {ago(last.started, now)}"
        made.sentences.append(f"{name} had begun {since}, and {_gone(past)}: nobody saw it end")
        made.sentences.append(f"`flow resume {past.run.name}` runs it again, unless it is at_most_once")
        return
    made.facts["since"] = last.started
    made.sentences.append(
        f"{name} has been running for {duration(max(0, now - last.started) / 1e9)}{_at_attempt(last)}, on {last.executor}"
        f" of process {past.owner.pid} on {past.owner.host}"
    )


def _retrying(made: Explanation, past: Past, last: Attempt | None, name: str, now: int) -> None:
    if last is None:
        return
    ordinal = _ordinal(last.number)
    made.sentences.append(f"the {ordinal} attempt of {name} ended {ago(last.ended, now)}{_error(last)}")
    made.sentences.append(
        f"it waits to be tried again, in process {past.owner.pid} on {past.owner.host}"
        if past.owner is not None
        else f"it was to be tried again, and {_gone(past)}; `flow resume {past.run.name}` does"
    )


def _waiting(made: Explanation, past: Past, element: int, name: str, now: int) -> None:
    waits = past.waits_for(element)
    made.facts["waits_for"] = [{"name": past.names[up], "state": str(past.state_of(up))} for up in waits]
    if past.owner is None:
        why = f"{_gone(past)}" if past.state == "stopped" else f"the run ended {past.state}"
        made.sentences.append(f"{name} had not begun, and {why}; `flow resume {past.run.name}` goes on")
    if not waits:
        if past.owner is not None:
            executor = past.executor(element)
            busy = sum(
                [
                    past.executor(each) == executor and past.state_of(each) is TaskState.RUNNING
                    for each in range(past.size)
                ]
            )
            many = f"{counted(busy, 'task')} of this run {'is' if busy == 1 else 'are'}"
            made.sentences.append(
                f"{name} waits for a slot of {executor}, where {many} known to be running, or for a limit, if it has one"
            )
        return
    direct = [_with_state(past, up, now) for up in waits[:_NAMES]]
    more = f" and {len(waits) - _NAMES:,} more" if len(waits) > _NAMES else ""
    verb = "waits" if past.owner is not None else "waited"
    made.sentences.append(f"{name} {verb} for {', '.join(direct)}{more}")
    blockers = [each for each in past.blockers(element) if each not in waits or len(waits) > 1]
    if blockers and blockers != waits:
        made.facts["blockers"] = [{"name": past.names[each], "state": str(past.state_of(each))} for each in blockers]
        told = [_with_state(past, each, now) for each in blockers[:_NAMES]]
        more = f" and {len(blockers) - _NAMES:,} more" if len(blockers) > _NAMES else ""
        made.sentences.append(f"all of it hangs on {', '.join(told)}{more}")


def _with_state(past: Past, element: int, now: int) -> str:
    state = past.state_of(element)
    last = past.last(element)
    if state is TaskState.RUNNING and last is not None and past.owner is not None:
        return f"{past.names[element]} (running for {duration(max(0, now - last.started) / 1e9)})"
    was = "was " if state is TaskState.RUNNING else ""
    return f"{past.names[element]} ({was}{state})"


# ── a miss ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def explain_miss(store: Store, past: Past, last: Attempt | None) -> Explanation | None:
    """Why an attempt that ran was not taken from the cache; None where that cannot be told.

    Its own entry in the cache says what its key was made of; an attempt that failed, or whose entry was removed, has none.
    """
    from flowlane.misses import Entries, parts_of

    if last is None or last.state not in DONE or last.result is None:
        return None
    task = past.task(last.element)
    entries = store.cache_entries(task)
    own = next((entry for entry in entries if entry.result == last.result), None)
    if own is None:
        return None
    now = parts_of(own.parts)
    found = Entries([entry for entry in entries if entry.created < own.created]).nearest(now)
    made = Explanation("miss", facts={"entry": own.key.hex(), "nearest": None, "difference": None})
    if found is None:
        made.sentences.append(f"it was not in the cache: there was no entry of task {task} before")
        return made
    made.facts["nearest"] = {"key": found.entry.key.hex(), "run": found.entry.result[0], "created": found.entry.created}
    made.facts["difference"] = found.difference.to_dict()
    run = _run_name(store, found.entry.result[0])
    made.sentences.append(
        f"it was not in the cache: most like it is the entry of run {run}, and {'; '.join(found.difference.sentences())}"
        if len(found.difference)
        else f"it was not in the cache: the entry of run {run} was too old or could not be read"
    )
    return made


def explain_cache(store: Store, past: Past, element: int, now: int) -> Explanation:
    """Why a task was, or was not, taken from the cache: the state is "hit", "miss", or "unknown" where nothing tells."""
    last = past.last(element)
    name = past.names[element]
    if last is not None and last.state is TaskState.CACHED:
        made = Explanation("hit", [f"{name} was taken from the cache: its inputs and its code were the same"])
        _cached_in(made, store, past, last.result, now)
        return made
    made = explain_miss(store, past, last) or Explanation("unknown")
    if made.sentences:
        made.sentences[0] = f"{name}: {made.sentences[0]}"
    elif last is None or last.state not in DONE:
        made.sentences.append(f"{name} is {past.state_of(element)}: only results are cached")
    else:
        made.sentences.append(
            f"nothing tells of {name}: no entry of the cache is its own; either it is not declared with a cache, or an argument"
            " cannot be hashed, or its entry was removed or replaced since"
        )
    return made


# ── words ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _ordinal(number: int) -> str:
    return _ORDINALS[number - 1] if 0 < number <= len(_ORDINALS) else f"{number}th"


def _at_attempt(last: Attempt) -> str:
    return f", at its {_ordinal(last.number)} attempt" if last.number > 1 else ""


def _took(last: Attempt) -> str:
    return "?" if last.duration is None else duration(last.duration)


def _place(last: Attempt) -> str:
    return f"{last.executor} ({last.worker})" if last.worker and last.worker != last.executor else last.executor


def _after_waiting(last: Attempt) -> str:
    waited = last.waited
    return f", after waiting {duration(waited)} for a slot" if waited is not None and waited >= 0.1 else ""


def _error(last: Attempt | None) -> str:
    failure = last.failure if last is not None else None
    if failure is None:
        return ""
    from flowlane.cli.summary import user_lines

    where = next((place for place, _ in reversed(user_lines(failure))), "")
    text = failure.line
    return f": {_short(text)}{f' ({where})' if where else ''}"


def _short(text: str) -> str:
    line = text.strip().partition("\n")[0]
    return line if len(line) <= _ERROR_MAX else f"{line[:_ERROR_MAX]}…"


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:_NAMES]) + (", …" if len(words) > _NAMES else "")
