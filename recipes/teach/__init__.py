"""Teaching a finished model something new from a few clips."""
