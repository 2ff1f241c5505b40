"""Text to token ids and back: vocabularies, chat formats, fill-in-the-middle and stop conditions."""
