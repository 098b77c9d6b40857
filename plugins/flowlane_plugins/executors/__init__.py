"""Executors: where tasks run. One module each; ``flowlane.runtime.ports`` says what an executor is.

Modules are imported one by one where they are needed. Worker processes import this package too, so it imports nothing.
"""
