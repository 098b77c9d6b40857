"""The pure heart of flowlane: plan, lanes, scheduler, and the messages between it and the world.

Nothing here reads a clock, draws a random number, starts a thread or does I/O, and nothing outside the standard library is
imported. The scheduler can be embedded without the rest of flowlane: build a Plan, feed events, carry out commands.
``docs/embedding-the-scheduler.md`` drives it in about 30 lines.
"""

from flowlane.core.lanes import Lane
from flowlane.core.messages import (
    NEVER,
    Abandoned,
    Cached,
    CancelRequested,
    Command,
    Crashed,
    DrainRequested,
    Event,
    Failed,
    Finish,
    Interrupt,
    Interrupted,
    Launch,
    Release,
    RunStarted,
    SetTimer,
    SlotAvailable,
    Started,
    Step,
    Succeeded,
    TimerFired,
    Transition,
    Wake,
)
from flowlane.core.plan import NO_RETRY, NotAcyclic, Plan, Policy
from flowlane.core.scheduler import InvalidTransition, Scheduler
from flowlane.core.states import DONE, REASONS, RULES, STATES, TERMINAL, Reason, Rule, RunState, TaskState, code_of

__all__ = [
    "DONE",
    "NEVER",
    "NO_RETRY",
    "REASONS",
    "RULES",
    "STATES",
    "TERMINAL",
    "Abandoned",
    "Cached",
    "CancelRequested",
    "Command",
    "Crashed",
    "DrainRequested",
    "Event",
    "Failed",
    "Finish",
    "Interrupt",
    "Interrupted",
    "InvalidTransition",
    "Lane",
    "Launch",
    "NotAcyclic",
    "Plan",
    "Policy",
    "Reason",
    "Release",
    "Rule",
    "RunStarted",
    "RunState",
    "Scheduler",
    "SetTimer",
    "SlotAvailable",
    "Started",
    "Step",
    "Succeeded",
    "TaskState",
    "TimerFired",
    "Transition",
    "Wake",
    "code_of",
]
