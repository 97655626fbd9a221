"""The second stage: a student is fine-tuned on few or many labels, with or without a teacher's cache."""
