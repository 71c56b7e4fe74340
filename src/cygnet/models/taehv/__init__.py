"""TAEHV: a tiny decoder that shows what latents will look like."""
