"""The training core: the one place that owns the optimizer, devices and files of a run."""
