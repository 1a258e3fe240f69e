"""What the platform tells of itself: counters for Prometheus, spans for OpenTelemetry."""
