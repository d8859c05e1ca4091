"""Evaluation of checkpoints and runs."""
