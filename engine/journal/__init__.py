"""The journal and who writes it: plan, publish, durable; recovery and the lease."""
