"""The APIs that clients speak: each translates its requests to those of `batching`, and the updates to its replies."""
