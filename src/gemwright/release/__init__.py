"""Release: other runtimes, verification, model cards, provenance and publishing."""
