"""Pictures: overlays, legends, curves."""
