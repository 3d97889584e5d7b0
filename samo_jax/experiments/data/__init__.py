"""Data: drawn, bundled with scikit-learn, or read from files."""
