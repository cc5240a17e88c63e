"""What live scenarios are made of: an engine at work, a load of its own process, and observers.

Strategy: everything is measured from outside the engine: by listing the bucket, by /proc, by
answers of its HTTP server, by the database's own view of the slot. The load and the probe of the
engine's loop are processes of their own, so that their CPU and their pauses are not the engine's;
proxy, watcher and sampler share the loop of the harness.
"""
