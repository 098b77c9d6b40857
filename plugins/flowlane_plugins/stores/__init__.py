"""Stores: where runs are kept. See ``flowlane.storage.port``."""
