"""What AWS is asked beside the bucket: secrets that it keeps, and tokens for its databases."""
