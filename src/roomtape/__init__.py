"""Roomtape: a self-hosted meeting recorder, one recording service for every meeting stack."""

__version__ = "0.1.0"
