"""Spans, metrics and log records of what the library does, by OpenTelemetry if the application has set it up."""
