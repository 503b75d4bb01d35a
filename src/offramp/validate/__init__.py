"""Published training runs, rehearsed: how far predictions are from what was measured."""
