"""What is said to people while something goes on. Knows nothing of runs."""
