"""The worked example: four endpoints over a database, a feature store, a partner's API and four models."""
