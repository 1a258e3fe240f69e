"""Makes networks for sandboxes: a namespace each, and one way out that holds their allow-lists."""
