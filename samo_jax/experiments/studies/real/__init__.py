"""The study of real data: which methods are worth their price there?"""
