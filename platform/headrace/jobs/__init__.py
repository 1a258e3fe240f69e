"""Jobs: requests that are stored before anyone is told their id, and finished at most once."""
