"""Decides which processes make up a platform on a machine, starts them, and leaves nothing behind."""
