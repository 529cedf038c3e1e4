"""The methods that HTTP defines: of any other, which a client makes up, neither a label nor a span has the name."""

METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})

__all__ = ["METHODS"]
