"""Configuration files, with the place of everything in them, to frozen values."""
