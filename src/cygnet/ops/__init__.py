"""Pure tensor functions; no models, no files, no device of their own."""
