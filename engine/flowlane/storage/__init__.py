"""What outlives a process: the store's port, how values become blobs, and the fingerprints that tell whether code or
inputs changed.

Nothing here runs anything, and nothing here knows a database: stores are plug-ins (``flowlane_plugins.stores``).
"""
