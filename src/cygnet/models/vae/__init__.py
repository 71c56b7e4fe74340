"""Wan-VAE: causal 3-D video autoencoder."""
