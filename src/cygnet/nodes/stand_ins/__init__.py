"""Modules that custom nodes import from their host, on top of ours: a name does what it promises, or says it cannot."""
