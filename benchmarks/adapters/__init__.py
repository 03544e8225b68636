"""How each engine is asked, in its own words.  One file per engine, run as a child process of `benchmarks.children`.

An adapter imports the standard library and this package alone until it loads its engine.
"""
