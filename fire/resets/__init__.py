"""Reset strategies, one file for each published method, and their registry."""
