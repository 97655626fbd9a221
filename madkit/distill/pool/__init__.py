"""The unlabelled pool: before the labels (pre-phase) or beside them (joint), with token terms or soft labels."""
