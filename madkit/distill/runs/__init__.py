"""Run folders: identity, manifest, summary, and what else decides a run's last bits."""
