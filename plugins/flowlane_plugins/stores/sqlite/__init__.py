"""Runs in one SQLite file, with large results in files beside it.

    flow.db         everything but large results
    results/        large results, by digest
    locks/          a file for each run that is owned
    flow.db.v1.bak  as it was before its schema was changed

`store` is the whole; the other modules hold one concern each: `database` connections and transactions, `faults` what SQLite
and the system raise, `schema` tables and their versions, `rows` the hot path, `reading` and `upkeep` the rest of the SQL,
`locks` ownership, `files` large results, `place` folders and permissions, `key` the secret.
"""

from flowlane_plugins.stores.sqlite.store import SqliteStore

__all__ = ["SqliteStore"]
