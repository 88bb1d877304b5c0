"""One test on many ranks, by torch elastic."""
