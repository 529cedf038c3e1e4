"""Partner APIs over HTTP as sources of the Orchestrator API Service."""
