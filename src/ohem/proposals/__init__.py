"""Region proposals: selective search, its cache on disk, and the original release's `.mat` files."""
