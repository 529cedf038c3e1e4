"""What stands around one call of a source: timeout, retry, circuit breaker, concurrency limit, cache."""
