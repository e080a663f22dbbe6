"""Content-addressed artifacts, locks and provenance."""
