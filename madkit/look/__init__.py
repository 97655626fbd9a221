"""Looking at what a teacher says of one example: its most relevant tokens, as numbers and as a picture."""
