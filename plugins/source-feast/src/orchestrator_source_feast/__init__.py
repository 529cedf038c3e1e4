"""Feast feature stores as sources of the Orchestrator API Service."""
