"""Side-by-side measurements: the peers and us in turn, in one run, as JSON of medians and ratios."""
