"""What SAMO's parameters do, and how sharp the minima are that it finds."""
