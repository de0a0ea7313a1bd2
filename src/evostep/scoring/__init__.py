"""Scoring: examples and a metric in, a number out, and no trace left in the model."""
