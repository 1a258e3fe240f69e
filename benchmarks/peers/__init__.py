"""The other side of each comparison, one program each, in a process of its own."""
