"""The study of local parts: which one of SAMO's perturbation is worth its cost?"""
