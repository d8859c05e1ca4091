"""Data sets, their index, transforms and loaders."""
