"""Accelerators of a machine: which there are, and what a container needs to use the assigned ones."""
