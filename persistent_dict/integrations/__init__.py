"""What ties this package to others: one module each, and the only one that imports it."""
