"""Bulk generation: plan, worker, finalize, export."""
