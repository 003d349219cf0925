"""`make bench`: this proxy beside the limits of its web server and beside what people write instead. See `__main__`."""
