"""The ablation: SAMO's parameters, and the sharpness of its minima."""
