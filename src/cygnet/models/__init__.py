"""The Wan 2.1 networks as plain torch modules, one folder each."""
