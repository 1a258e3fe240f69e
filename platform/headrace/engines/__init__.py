"""What runs inside a sandbox; each folder is one engine, self-contained, and is started by path, not imported."""
