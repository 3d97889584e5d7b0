"""The local experiment: which local part of SAMO's perturbation is worth its cost?"""
