"""The transformers of everyday use."""
