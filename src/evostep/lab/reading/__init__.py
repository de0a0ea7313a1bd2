"""A reader of text whose inside nobody sees, and what stands before it."""
