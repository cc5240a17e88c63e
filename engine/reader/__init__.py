"""From the bucket back."""
