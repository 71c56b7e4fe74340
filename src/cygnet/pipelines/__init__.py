"""Request and components to frames."""
