"""Executors and sinks that come with flowlane, each behind the protocols of ``flowlane.runtime.ports``.

flowlane never imports this package by name: it finds its parts as it finds anybody's, through entry points. Worker
processes import it too, so it imports nothing.
"""
