"""The process and the machine. Nothing here depends on a model, or imports JAX when it is imported."""
