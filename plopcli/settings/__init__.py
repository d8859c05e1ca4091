"""Settings of a run: pydantic sections, their layers and presets."""
