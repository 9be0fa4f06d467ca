"""Polar factors of batches of matrices, and how far a matrix is from an isometry."""
