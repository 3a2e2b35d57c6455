"""Codebooks of universal tables: random mixtures to train on, Lloyd's algorithm, and the choice of a member for a field."""
