"""A person corrects a classifier's labels, and every figure of the whole model follows each correction at once."""
