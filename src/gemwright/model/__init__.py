"""The definition of every model."""
