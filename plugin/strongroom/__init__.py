"""strongroom: confidential execution for the model servers people already run."""

__version__ = "0.1.0"
