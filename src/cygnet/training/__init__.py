"""Datasets, losses and loops that train the networks."""
