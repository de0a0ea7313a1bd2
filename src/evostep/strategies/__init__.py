"""Strategies: how members are drawn, and how the center moves. One algorithm, one file."""
