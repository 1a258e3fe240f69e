"""The gateway decides which instance answers a request, and holds the request until one can."""
