"""The second stage: a student is fine-tuned on few or many labels, with or without a teacher's cache.

`stage.py` is one run from its names to its folder, `asked.py` what its names mean, `teaching.py` what it learns from.
The rooms may import only those before them: `settings`, `batches`, `teacher`, `loop`, `objective`, `runs`, `pool`;
`sweep` makes many runs.
"""
