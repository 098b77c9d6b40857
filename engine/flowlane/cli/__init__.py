"""The command ``flow``: the only part of flowlane that prints, reads settings, and installs signal handlers.

``main`` answers ``flow --help`` from a constant; every other line goes through click, and each verb's module is
imported only when that verb is used. Start-up time is a feature: keep imports inside functions here.
"""
