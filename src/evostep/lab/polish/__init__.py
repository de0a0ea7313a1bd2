"""Polishing from files: scores or a network in; decision, weights, card and page out."""
