"""Control decides what runs where: it observes, asks the pure autoscaler, and acts on hosts and gateways."""
