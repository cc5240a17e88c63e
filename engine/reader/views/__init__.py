"""Views: SQL over the bucket's objects, for engines that read it by themselves. Pure."""
