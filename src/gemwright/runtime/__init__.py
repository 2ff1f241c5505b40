"""The process and the machine. Nothing here knows a model or imports JAX."""
