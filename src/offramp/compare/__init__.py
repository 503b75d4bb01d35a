"""Recordings of one program on two chips, compared: is it still the same model?

`run` compares two runs, `judge` two recordings: `pairing` has how far apart each tensor is, `noise`
what rounding alone does, `placing` and `kinds` where and what the first difference is, `settings`
what is not the chip, `curves` the losses. `launching` starts what is recorded.
"""
