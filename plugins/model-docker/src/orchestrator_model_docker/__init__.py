"""Models in Docker containers."""
