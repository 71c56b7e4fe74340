"""CLIP visual tower and its preprocessing."""
