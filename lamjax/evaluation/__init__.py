"""Evaluation of models: errors, parity, forgetting, and the ends of relaxations."""
