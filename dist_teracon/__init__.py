"""Distributed training of universal user representations that keep learning (TERACON, KDD 2023)."""

__version__ = "0.1.0"
