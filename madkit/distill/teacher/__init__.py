"""The teacher's side of a run, read from caches: banks of vectors, targets of a batch, confidence, the criterion."""
