"""Adaptive fine-tuning of a teacher on a task's training subset, before it reads everything once."""
