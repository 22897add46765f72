"""The key broker: Confidential Containers KBS 0.4.0, and what it does not have (docs/release.md)."""
