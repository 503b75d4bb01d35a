"""Costs: the seconds that an operator call or a collective takes, with what the figure rests on."""
