"""Several processes that serve one configuration, and the one that looks after them."""
