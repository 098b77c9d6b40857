"""Worker processes of our own: what starts them, what they run, and the shared memory in between.

Modules are imported one by one where they are needed. The nursery and every worker import this package too, so it
imports nothing.
"""
