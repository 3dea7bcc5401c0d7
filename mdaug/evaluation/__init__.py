"""Fidelity and usefulness of synthetic samples, and the report."""
