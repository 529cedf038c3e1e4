"""The REST server: the public listener and the admin listener."""
