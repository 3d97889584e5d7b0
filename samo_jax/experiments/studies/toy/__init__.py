"""The toy study: where do methods end on landscapes that can be drawn?"""
