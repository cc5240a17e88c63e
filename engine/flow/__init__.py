"""From the source to a cut chunk, in bounded memory."""
