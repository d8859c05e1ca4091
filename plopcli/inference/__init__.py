"""Trained models for people who only use them: from Python, and by `plop predict`."""
