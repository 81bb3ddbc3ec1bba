"""Rows of the Jacobian, products with it, and its K-FAC curvature."""
