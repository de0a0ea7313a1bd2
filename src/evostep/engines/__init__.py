"""Engines: members and a fitness in, a score for each out. Chosen for the user."""
