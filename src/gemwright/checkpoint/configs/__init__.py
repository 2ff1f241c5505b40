"""Configuration files to and from `Config`."""
