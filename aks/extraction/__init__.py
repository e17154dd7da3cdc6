"""Step 1: videos and questions in, relevance scores or stored features out."""
