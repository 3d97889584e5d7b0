"""Looking at what training came to."""
