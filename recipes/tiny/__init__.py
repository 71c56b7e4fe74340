"""The embedded tiny models: a procedural world, the recipe that trains on it, and the measurement."""
