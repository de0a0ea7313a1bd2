"""Polishing: from a trained network to a better metric, confirmed."""
