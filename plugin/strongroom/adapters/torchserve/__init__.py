"""Stock TorchServe 0.12: how it is configured, started, and what its workers hand to a handler."""
