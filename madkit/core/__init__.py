"""What every room stands on: errors, console, atomic files, registry, configuration, seeds, signals, workspace.

Nothing in here imports torch, transformers or zarr, and nothing is re-exported: import the module that you need.
"""
