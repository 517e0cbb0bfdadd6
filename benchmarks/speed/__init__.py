"""How fast the engine is: beside the bare base, the published scheme and PEFT, all in one process.

Run it with `make bench`, or `python -m benchmarks.speed --help`. What is measured, and how, is told in
docs/benchmarks.md.
"""
