"""What runs inside a sandbox: each folder is one engine, self-contained, started by path, never imported."""
