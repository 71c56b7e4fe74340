"""What is proved and timed on a GPU; ``scripts/gpu_check`` runs all of it."""
