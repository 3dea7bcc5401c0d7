"""mdaug: labelled synthetic micro-Doppler spectrograms."""

__version__ = "0.1.0"
