"""Handlers that TorchServe imports by name: the sealed one, and real examples."""
