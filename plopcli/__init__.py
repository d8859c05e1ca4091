"""Continual semantic segmentation: one core, every method, one command line."""

__version__ = "0.1.0"
