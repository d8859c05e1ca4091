"""Models for other programs: one network without batch norm, in a file of its own."""
