"""A comparison: arms over seeds, on equal data and equal budget, resumable."""
