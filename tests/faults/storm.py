"""A program that runs waves of short and long tasks for ever and says so: the engine that storms kill. Run as a script.

python storm.py FOLDER MODE        MODE: busy | idle | spin | daemons
"""

import asyncio
import os
import re
import subprocess
import sys
import time

from flowlane import Engine, Workflow, task


@task.cpu
def short(n):
    return n


@task.cpu
def spin(at_work):
    open(at_work, "w").close()
    re.match(r"(a|a)*$", "a" * 60 + "b")


@task.cpu
def daemon(n, at_work):
    subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=bool(n % 2), stdin=subprocess.DEVNULL
    )
    open(at_work, "w").close()
    time.sleep(300)


async def main(folder, mode):
    async with Engine(slots={"processes": 2}) as engine:
        ready, *at_work = (os.path.join(folder, name) for name in ("ready", "one", "two"))
        while True:
            workflow = Workflow("storm")
            if mode == "spin":
                calls = [spin.bind(path) for path in at_work]
            elif mode == "daemons":
                calls = [daemon.bind(n, path) for n, path in enumerate(at_work)]
            else:
                calls = [short.bind(n) for n in range(200)]
            handles = [workflow.add(call) for call in calls]
            handle = engine.start(workflow.returns(handles))
            if mode in ("spin", "daemons"):
                while not all(os.path.exists(path) for path in at_work):
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.1)
            else:
                await handle
            if not os.path.exists(ready):
                with open(ready, "w") as file:
                    file.write(str(os.getpid()))
            if mode == "idle":
                await asyncio.sleep(300)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
