"""The ablation: what SAMO's parameters do, and how sharp its minima are."""
