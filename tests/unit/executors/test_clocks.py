"""Times of other machines, told by the clock of this one."""

from __future__ import annotations

from flowlane_plugins.executors.clocks import Clocks, machine


def test_clocks_of_other_machines_are_told_by_ours() -> None:
    #   ours    100 ─ submitted                 400 ─ received
    #   theirs       1,000,120 ─ started   1,000,350 ─ sent          so the shift is between -1,000,020 and -999,950
    clocks = Clocks()
    first = clocks.shift("far", submitted=100, started=1_000_120, sent=1_000_350, received=400)
    assert first == -999_950
    # a message that came quicker tells more, and stays known
    assert clocks.shift("far", submitted=500, started=1_000_505, sent=1_000_600, received=610) == -999_990
    assert clocks.shift("far", submitted=700, started=1_000_800, sent=1_000_900, received=990) == -999_990
    # a clock that was set is believed again
    assert clocks.shift("far", submitted=1000, started=5_000, sent=5_100, received=1_150) == -3_950
    assert clocks.shift(machine(), submitted=1, started=2, sent=3, received=4) == 0
