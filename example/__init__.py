"""The worked example: 10,000 customers in SQLite, a credit model by MLflow, and the configuration that joins them."""
