"""What a program computed, step by step, kept in a file that another recording is compared with.

`frames` is the file, `part` what is to be recorded, `recording` what was: they need no torch.
`recorder` and what it uses run inside the recorded program.
"""
