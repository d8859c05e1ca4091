"""Figures of segmentation and of continual learning, as pure functions of arrays."""
