"""Solvers: arrays in, a factor that is kept and solutions out; they never see a network."""
