"""Spaces: which weights may move, in which coordinates."""
