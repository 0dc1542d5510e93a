"""Supervisors, which outlive the ranks that they started, and a rank's side of that."""
