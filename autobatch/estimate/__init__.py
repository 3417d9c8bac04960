"""Predicted peak memory: the run's own recipe on fake tensors, which have shapes and no memory."""
