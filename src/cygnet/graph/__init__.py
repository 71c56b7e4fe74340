"""Node graphs: schema, conversion, validation, scheduling, caching, execution; no torch, no HTTP, no concrete node."""
