"""What a running job tells to monitoring systems: Prometheus, Ray's metrics, OpenTelemetry."""
