"""Where and how a built model runs."""
