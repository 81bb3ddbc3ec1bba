"""The version, apart, so that no room has to import the package that imports them all."""

__version__ = "0.3.0"
