"""Runs stored jobs on the endpoints that this gateway sees, and tells whoever waits or asked to be told."""
