"""The contenders of `bench/train_cpu.py`: each trains one model in a process of its own."""
