"""One file for each method that `peers.py` times: how it is called, and what to know of it.

Such a file imports its package at its top, so that a peer that is not installed is left out, and
says:

- `PACKAGES`: the distributions whose versions are recorded;
- `CALLED`: how the method is called, in one line;
- `NOTES`: what a reader must know to judge its numbers;
- `SCORES_PARENT`: whether a generation scores the parent besides the members;
- `prepare(task)`: gives a function that runs one generation and returns when it is done.

All of them score by minus the mean cross-entropy on all examples, or minimise the cross-entropy.
Accuracy would tie between members that differ little, and whoever then has no step to make would
look fast.
"""
