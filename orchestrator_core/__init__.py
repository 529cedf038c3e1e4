"""Orchestrator API Service: endpoints that fetch features, score them and shape the answer, written as YAML."""

__version__ = "0.1.0"
