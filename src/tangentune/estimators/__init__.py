"""The classifier and the regressor: fitting, predicting, explaining, editing, saving."""
