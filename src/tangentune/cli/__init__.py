"""The command line, one file a command; the entry is app.py."""
