"""What every sandbox with an engine in it has: its process, control channel, output, limits and end."""
