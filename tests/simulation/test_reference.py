"""The reference interpreter against examples worked out by hand: what the others are held against must be right itself."""

from __future__ import annotations

from typing import Any

from .model import (
    Body,
    Call,
    Combined,
    Either,
    Lit,
    Map,
    Model,
    Param,
    Reduce,
    Ref,
    Setup,
    Statement,
    Sub,
    Switch,
    When,
    number,
    numbers,
)
from .reference import Ending, evaluate


def ending(
    *statements: Statement, returns: tuple[str, ...] = (), param: int = 0, fates: dict[str, str] | None = None
) -> Ending:
    """Evaluate; `fates` are those of first attempts."""
    said = tuple(((name, 1), fate) for name, fate in (fates or {}).items())
    return evaluate(Model(Body("main", statements, returns), param, fates=said))


A, B, C = Call("a"), Call("b"), Call("c")


def test_a_diamond() -> None:
    #   a ─▶ b ─▶ d
    #   └──▶ c ───┘
    end = ending(A, Call("b", (Ref("a"),)), Call("c", (Ref("a"),)), Call("d", (Ref("b"), Ref("c"))), returns=("d",))
    a = number("a", [])
    b, c = number("b", [a]), number("c", [a])
    assert end.value == number("d", [b, c])
    assert end.states == dict.fromkeys("abcd", "succeeded")
    assert end.calls == {"a": [[]], "b": [[a]], "c": [[a]], "d": [[b, c]]}


def test_a_failure_goes_down_and_a_rule_catches_it() -> None:
    #   a ─▶ b ─▶ c        a ─▶ d (all_done)
    end = ending(
        A, Call("b", (Ref("a"),)), Call("c", (Ref("b"),)), Call("d", (Ref("a"),), rule="all_done"), fates={"a": "fail"}
    )
    assert end.states == {"a": "failed", "b": "upstream_failed", "c": "upstream_failed", "d": "succeeded"}
    assert end.calls == {"a": [[]], "d": [[[]]]}
    assert end.verdict == "failed"


def test_what_may_fail_fails_nobody() -> None:
    end = ending(
        Call("a", may_fail=True), Call("b", after=("a",), rule="all_failed"), returns=("b",), fates={"a": "fail"}
    )
    assert end.states == {"a": "failed", "b": "succeeded"}
    assert (end.verdict, end.value) == ("succeeded", number("b", []))


def test_retries_and_skips() -> None:
    body = Body("main", (Call("a", retries=2), Call("b", (Ref("a"),)), Call("c", (Ref("b"),))), ())
    end = evaluate(Model(body, fates=((("a", 1), "fail"), (("a", 2), "fail"), (("b", 1), "skip"))))
    assert end.states == {"a": "succeeded", "b": "skipped", "c": "skipped"}
    assert len(end.calls["a"]) == 3
    assert end.verdict == "succeeded"


def test_a_failure_outranks_a_skip() -> None:
    #   a (skipped) ─┐
    #   b (failed) ──┴▶ c
    end = ending(A, B, Call("c", after=("a", "b")), fates={"a": "skip", "b": "fail"})
    assert end.states == {"a": "skipped", "b": "failed", "c": "upstream_failed"}


def test_both_arms_of_a_condition() -> None:
    #   a ─?─▶ b ─▶ c ─┐
    #      └─▶ d ──────┴▶ e
    for key in range(2):
        name = next(f"a{n}" for n in range(99) if bool(number(f"a{n}", [])) is bool(key))
        end = ending(
            Call(name),
            When(name, (B, Call("c", (Ref("b"),))), (Call("d"),)),
            Either("e", ("c", "d")),
            returns=("e",),
        )
        taken, other = ("b", "c"), ("d",)
        if not key:
            taken, other = other, taken
        assert all(end.states[node] == "succeeded" for node in (*taken, "e"))
        assert all(end.states[node] == "skipped" for node in other)
        assert end.value == (number("c", [number("b", [])]) if key else number("d", []))


def test_a_switch_takes_one_arm() -> None:
    kind = number("a", [])
    others = tuple(value for value in range(6) if value != kind)
    end = ending(A, Switch("a", ((others, (B,)), ((kind,), (C,))), (Call("d"),)))
    assert end.states == {"a": "succeeded", "b": "skipped", "c": "succeeded", "d": "skipped"}
    end = ending(A, Switch("a", ((others, (B,)),), (Call("d"),)))
    assert end.states == {"a": "succeeded", "b": "skipped", "d": "succeeded"}


def test_a_condition_outranks_a_rule_and_passes_a_failure_on() -> None:
    name = next(f"a{n}" for n in range(99) if not number(f"a{n}", []))
    end = ending(Call(name), When(name, (Call("b", rule="all_done"), Call("c", rule="always"))))
    assert end.states == {name: "succeeded", "b": "skipped", "c": "skipped"}
    end = ending(A, When("a", (Call("b", rule="always"),)), fates={"a": "fail"})
    assert end.states == {"a": "failed", "b": "upstream_failed"}
    end = ending(A, When("a", (Call("b", rule="always"),)), fates={"a": "skip"})
    assert end.states == {"a": "skipped", "b": "skipped"}


def test_a_map_over_a_map() -> None:
    #   m[0] ─▶ n[0] ─┐
    #   m[1] ─▶ n[1] ─┼▶ s
    #   m[2] ─▶ n[2] ─┘
    chain = (Map("m", Lit((1, 2, 3))), Map("n", Ref("m")), Call("s", (Ref("n"),), rule="all_done"))
    end = ending(*chain, returns=("s",))
    n = [number("n", [number("m", [item])]) for item in (1, 2, 3)]
    assert end.value == number("s", [n])
    assert end.states == {name: "succeeded" for k in "012" for name in (f"m[{k}]", f"n[{k}]", "m", "n", "s")}
    end = ending(*chain, fates={"m[1]": "fail", "n[2]": "skip"})
    assert end.states == {
        "m[0]": "succeeded",
        "m[1]": "failed",
        "m[2]": "succeeded",
        "m": "failed",
        "n[0]": "succeeded",
        "n[1]": "upstream_failed",
        "n[2]": "skipped",
        "n": "upstream_failed",
        "s": "succeeded",
    }
    assert end.calls["s"] == [[[n[0]]]]


def test_maps_of_other_sources() -> None:
    end = ending(
        Call("a", makes="numbers"),
        Map("m", Ref("a"), fixed=(Lit(7),)),
        Map("k", Lit((("x", 1), ("y", 2)), keyed=True)),
        Map("p", Combined("product", (Lit((1, 2)), Lit((3, 4))))),
        Map("z", Combined("zip", (Lit((1, 2)), Lit((3, 4))))),
        Map("f", Lit((0, 1, 2, 3)), filters=True),
        Reduce("r", Ref("k"), 2),
        Map("none", Lit(())),
        returns=("k", "f", "r", "none", "m"),
    )
    a = numbers("a", [])
    k = {"x": number("k", [1]), "y": number("k", [2])}
    liked = [item for item in range(4) if number("f", [item]) % 2 == 0]
    assert end.value == [k, liked, sum(k.values()), [], [number("m", [item, 7]) for item in a]]
    assert end.calls["p[2]"] == [[2, 3]]
    assert end.calls["z[1]"] == [[2, 4]]
    assert "z[2]" not in end.states
    assert end.states["none"] == "succeeded"


def test_workflows_in_workflows() -> None:
    inner = Body("inner", (Call("a", (Param(),)), Call("b", (Ref("a"),))), ("b",))
    end = ending(Sub(inner, Param()), Call("c", (Ref("inner"),)), returns=("c",), param=5)
    b = number("b", [number("a", [5])])
    assert end.value == number("c", [b])
    assert end.states == dict.fromkeys(("inner/a", "inner/b", "c"), "succeeded")

    mapped = ending(
        Map("s", Lit((5, 6)), body=inner), Call("c", (Ref("s"),), rule="all_done"), fates={"s[0]/a": "fail"}
    )
    assert mapped.states == {
        "s[0]/a": "failed",
        "s[0]/b": "upstream_failed",
        "s[0]": "failed",
        "s[1]/a": "succeeded",
        "s[1]/b": "succeeded",
        "s[1]": "succeeded",
        "s": "failed",
        "c": "succeeded",
    }
    assert mapped.calls["c"] == [[[number("b", [number("a", [6])])]]]


def test_a_task_becomes_a_workflow() -> None:
    inner = Body("inner", (Map("m", Lit((1, 2)), fixed=(Param(),)),), ("m",))
    end = ending(Call("a", becomes=inner), Call("b", becomes="leaf"), returns=("a", "b"))
    a = number("a", [])
    assert end.value == [[number("m", [1, a]), number("m", [2, a])], number("leaf", [number("b", [])])]
    assert set(end.states) == {"a", "a/m", "a/m[0]", "a/m[1]", "b", "b/leaf"}
    assert ending(Call("b", becomes="leaf"), fates={"b/leaf": "fail"}).states == {"b": "failed", "b/leaf": "failed"}


def test_a_teardown_waits_for_its_block() -> None:
    #   up ─▶ work ─▶ down     down also after work has failed, not where up has
    setup = Setup(Call("up"), (Call("work", (Ref("up"),)),), "down")
    assert ending(setup, fates={"work": "fail"}).states == {"up": "succeeded", "work": "failed", "down": "succeeded"}
    assert ending(setup, fates={"up": "fail"}).states == {
        "up": "failed",
        "work": "upstream_failed",
        "down": "upstream_failed",
    }
    assert ending(setup, fates={"up": "skip"}).states == {"up": "skipped", "work": "skipped", "down": "skipped"}


def test_a_join_that_cancels_the_rest() -> None:
    race = (A, B, C, Call("d", after=("a", "b", "c"), at_least=2, cancel_rest=True))
    end = evaluate(Model(Body("main", race, ())), lambda name, allowed: "cancelled" if name == "c" else max(allowed))
    assert end.states == {"a": "succeeded", "b": "succeeded", "c": "cancelled", "d": "succeeded"}
    assert end.loose == {"a", "b", "c"}


def test_enough_of_a_map() -> None:
    some = Map("m", Lit((1, 2, 3)), enough=2)
    say: dict[str, Any] = {"m[2]": "cancelled"}
    end = evaluate(Model(Body("main", (some,), ())), lambda name, allowed: say.get(name, "succeeded"))
    assert (end.states["m[2]"], end.states["m"]) == ("cancelled", "succeeded")
