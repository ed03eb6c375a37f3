"""Region proposals: selective search, Edge Boxes, their cache on disk, and the original release's `.mat` files."""
