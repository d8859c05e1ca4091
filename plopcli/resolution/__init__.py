"""From flags, environment, settings file, presets and defaults to the settings of a run, and back from stored ones."""
