"""What a script defines, told apart when it travels: by its name where that is its own, by value where another has it."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

SCRIPT = """
    import pickle
    from flowlane import task, workflow

    tasks = []
    for number in range(3):
        @task.io(name=f"plus{number}")
        def plus(x: int, number: int = number) -> int:
            return x + number

        tasks.append(plus)

    again = [pickle.loads(pickle.dumps(each)) for each in tasks]
    print([(each.name, each.fn(10)) for each in again], [one is other for one, other in zip(tasks, again)])

    @task.io
    def one(x: int) -> int:
        return x

    other = task.io(retries=3)(one.fn)
    found = pickle.loads(pickle.dumps(other))
    print(found.settings.options["retries"], pickle.loads(pickle.dumps(one)) is one)

    @workflow
    def flow(x: int) -> int:
        return one(x)

    slow = workflow(name="slow")(flow.fn)
    print(pickle.loads(pickle.dumps(slow)).name, pickle.loads(pickle.dumps(flow)) is flow)
    print(pickle.loads(pickle.dumps(flow.options(name="eu"))).fn is flow.fn)
"""


def test_tasks_of_one_name_in_a_script_stay_what_they_are(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    told = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=True).stdout
    assert told.splitlines() == [
        "[('plus0', 10), ('plus1', 11), ('plus2', 12)] [False, False, True]",
        "3 True",
        "slow True",
        "True",
    ]
