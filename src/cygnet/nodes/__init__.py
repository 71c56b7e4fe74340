"""Nodes under the class names that ComfyUI workflows use: thin adapters onto the functions that the command uses."""
