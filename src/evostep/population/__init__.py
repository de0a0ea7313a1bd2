"""Populations: methods that train several models and let them compete."""
