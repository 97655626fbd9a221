"""A set of examples as tensors, the order in which steps see them, and what a step's batch really holds."""
