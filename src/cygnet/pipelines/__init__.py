"""From a checked request and ready components to frames."""
