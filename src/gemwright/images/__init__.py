"""Pictures: read, made ready for the vision tower, and what models say of them as boxes and masks."""
