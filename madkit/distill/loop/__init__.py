"""The training loop that both phases share: steps, rate, resume, looks at the development split, trackers."""
