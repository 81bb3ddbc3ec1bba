"""Models that leave the library: files that predict without it."""
