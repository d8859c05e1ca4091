"""Files that survive: written whole, held by one process at a time, read without trust. Knows nothing of runs."""
