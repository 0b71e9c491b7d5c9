"""One engine behind the HTTP interfaces that people's programs already speak; needs the extra `server`.

The border inside: `dialects` know shapes of JSON and nothing of batches; `scheduler` knows rows, callers and time, and
nothing of HTTP or the device; `device` is the one thread that runs anything.
"""
