"""Devices, processes and precision: what a run computes on."""
