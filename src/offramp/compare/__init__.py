"""Recordings of one program on two chips, compared: is it still the same model?

`launching` starts what is recorded.
"""
