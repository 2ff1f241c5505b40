"""Where each weight is in every file format: tables, read one way to load and the other way to write."""
