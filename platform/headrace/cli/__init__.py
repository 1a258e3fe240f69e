"""The command line: turns words into calls of the client and the supervisor, and answers into text."""
