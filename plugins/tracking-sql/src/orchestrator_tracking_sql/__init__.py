"""Executions in SQLite or PostgreSQL, for the Orchestrator API Service."""

__version__ = "0.1.0"
