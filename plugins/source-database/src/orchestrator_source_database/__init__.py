"""SQL databases as sources of the Orchestrator API Service: SQLite, PostgreSQL, MariaDB and MySQL."""
