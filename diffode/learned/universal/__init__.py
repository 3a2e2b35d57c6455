"""Codebooks of universal tables: random mixtures, training by Lloyd's algorithm, and the choice of a member for a field."""
