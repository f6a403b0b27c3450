"""PixArt-α and PixArt-Σ text-to-image diffusion transformers in JAX."""
