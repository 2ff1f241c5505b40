"""Screen the texts of users and models: a model answers, policy by policy, whether a text breaks it."""
