"""What live scenarios are made of: an engine at work, a load beside it, and observers.

Strategy: everything is measured from outside the engine: by listing the bucket, by /proc, by
answers of its HTTP server, and by the database's own view of the slot. The load and the probe of
the engine's loop are processes of their own, so their CPU and their pauses are not the engine's.
Proxy, watcher and sampler share the harness's event loop.
"""
