"""Losses, each exact as sum and count."""
