"""Carries a compiled workflow out: ports to the world, executors by name, values, the loop, and the journal.

Modules are imported one by one where they are needed; the package itself imports nothing.
"""
