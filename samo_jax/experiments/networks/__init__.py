"""Networks with one head per task."""
