"""Students: cross-modal encoders with task heads, their inputs, and their files."""
