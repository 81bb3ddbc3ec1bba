"""Does another commit give the same answers? `run` stores them, `page` compares two stored runs."""
