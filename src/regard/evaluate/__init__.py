"""Scoring a trained model with the field's standard metrics."""
