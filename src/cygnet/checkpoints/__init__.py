"""Weight files of every published layout to canonical state dicts, and back."""
