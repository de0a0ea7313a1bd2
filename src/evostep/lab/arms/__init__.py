"""Arms: the methods that are compared, how each trains, and what it costs."""
