"""What this node keeps: blob cache files with their readiness, verified metadata."""
