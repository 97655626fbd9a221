"""Frozen encoders that read images and texts once and give tokens, a global vector, and where each token comes from."""
