"""Images: what an environment is made of, how it is built, fetched, kept and laid out for sandboxes."""
