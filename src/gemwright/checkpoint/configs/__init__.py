"""Read configuration files as `Config`, and write them."""
