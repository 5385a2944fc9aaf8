"""Attention and everything it is made of: masks, positions, kernels, caches."""
