"""The classifier and the regressor, and what a fitted model can be asked and told."""
