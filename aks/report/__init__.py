"""Reports: relevance curves, keyframes and their pictures, as one HTML file that needs no network."""
