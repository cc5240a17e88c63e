"""What fault tests share: engines as processes, a load, a twin slot, looks at the bucket."""
