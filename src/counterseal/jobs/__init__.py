"""Jobs: work that is accepted now and done by a worker, at least once."""
