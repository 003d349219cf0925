"""Answers. The HTTP server and everything that the site's pages and servers may ask of it."""
