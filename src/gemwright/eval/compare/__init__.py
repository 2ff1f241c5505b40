"""Side by side: answers of models or endpoints to the same prompts, judged by a person or by a model."""
