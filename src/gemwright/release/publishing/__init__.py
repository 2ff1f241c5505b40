"""Publish a model: card, license notices, provenance, checks, signature and upload."""
