"""The whole journey on one machine: what `strongroom demo` shows."""
