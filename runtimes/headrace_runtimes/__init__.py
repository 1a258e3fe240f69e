"""Sandboxes: isolated places to run code, made by runtimes that obey one contract (`base`)."""
