"""Declaring: what users write, and its way to a Program.

    task.py, workflow.py   @task.io, @task.cpu, @workflow, Workflow: record calls as nodes
    handle.py              what a call returns while a graph is being built, and the search for it in arguments
    parameters.py          a workflow's parameters: coerced and checked by pydantic before a body runs
    spec.py                options as pydantic models, one per distinct set
    compile.py             names, routes, order; Workflow → Program
    graph.py               networkx: everything a person asks of a graph
    callsite.py            where in the user's code something was written

Nothing here starts anything. Only spec, parameters and graph touch a third-party package, and only when used. The
package itself exports nothing: its functions ``task`` and ``workflow`` would hide the modules of the same names.
"""
