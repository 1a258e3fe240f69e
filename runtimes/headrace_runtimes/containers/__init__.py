"""Runs sandboxes as containers of any engine: waiting ones kept ready, each used once and destroyed."""
