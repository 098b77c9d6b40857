"""Sinks that come with flowlane: what hears the history of runs.

structured  JSON lines in a file (`JsonLinesSink`) and the stdlib logger "flowlane" (`LoggingSink`), through structlog
console     a line a transition, for people or as JSON (`ConsoleSink`)
progress    a live view on a terminal (`ProgressSink`)

All run on the journal's thread. None configures logging, structlog or the terminal of the host; structlog and rich are
imported by the first run that needs them.
"""
