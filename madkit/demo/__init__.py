"""The demo: the three stages on a part of the embedded benchmark, ending in a table and a page."""
